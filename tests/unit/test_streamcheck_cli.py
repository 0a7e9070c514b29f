"""The check's command line: bad input, clear lines, exit codes, bounded time and memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from streamcheck import __main__ as cli
from streamcheck import keep, remote
from unit_kit import ROOT, Handler, answer_json, clean_environment, mail_server

sys.path.insert(0, str(ROOT / "tests/fixtures"))
from engine_standin import EngineStandin
from faulty_proxy import FaultyProxy

Serve = Callable[..., str]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MILLRACE_KEY", raising=False)


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineStandin]:
    with EngineStandin(pace_ms=3) as engine:
        yield engine


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line here; return exit code, output, and what went to standard error."""
    try:
        code = cli.main(["--silence=0", *arguments])
    except SystemExit as stop:
        code = int(str(stop.code))
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Expect exit code 2 and one line that says why; return it."""
    code, out, err = run(capsys, "--quiet", *arguments)
    assert code == 2
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("check: ")
    return lines[0]


def test_a_stream(capsys: pytest.CaptureFixture[str], engine: EngineStandin) -> None:
    code, out, err = run(capsys, engine.url)
    assert code == 0
    assert "STREAMS" in out
    assert "checking public" in err
    code, out, _ = run(capsys, engine.url + "/v1/", "--quiet")
    assert (code, out) == (0, "The public address streams.\n")


def test_json_alone_is_on_standard_output(
    capsys: pytest.CaptureFixture[str], engine: EngineStandin
) -> None:
    code, out, _ = run(capsys, engine.url, "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["schema"], told["verdict"], told["hops"][0]["name"]) == (1, "streams", "public")
    assert out.count("\n") == 1


def test_a_page_is_written_whole(
    capsys: pytest.CaptureFixture[str], engine: EngineStandin, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    assert run(capsys, engine.url, f"--html={page}")[0] == 0
    assert page.read_text().rstrip().endswith("</html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    code, _, err = run(capsys, engine.url, f"--html={tmp_path}/nowhere/report.html")
    assert code == 2
    assert "cannot write" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ftp://host"], "is no address"),
        (["https://"], "is no address"),
        (["http://127.0.0.1:1"], "cannot be reached"),
        (["http://nowhere.invalid"], "no address for the name"),
        (["nobody"], "no server that ./millrace site has set up"),
        (["--inventory=/nonexistent/hosts.yml"], "Give an address"),
        (["--hop=engine"], "NAME=URL"),
        (["--hop=a=http://127.0.0.1:1", "--hop=a=http://127.0.0.1:2"], "the same name"),
        (["http://127.0.0.1:1", "--key-file=/nonexistent"], "key file /nonexistent"),
        (["--service=/nonexistent"], "/nonexistent cannot be read"),
        (["--chain=/nonexistent"], "/nonexistent cannot be read"),
    ],
)
def test_what_makes_no_sense(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert told in refused(capsys, *arguments)


@pytest.mark.parametrize(
    "arguments", [["--deep=nonsense"], ["--tokens=1"], ["--silence=-1"], ["--silence=1e9"], ["--x"]]
)
def test_wrong_options(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(capsys, "http://127.0.0.1:1", *arguments)[0] == 2


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("error_page", "it answers 502: an HTML page"),
        ("redirect", "sends to"),
        ("html_200", "something else than a list of models"),
        ("json_200", "something else than a list of models"),
        ("endless", "something else than a list of models"),
    ],
)
@pytest.mark.parametrize("named", [False, True], ids=["first model", "named model"])
def test_what_is_no_stream(
    capsys: pytest.CaptureFixture[str], engine: EngineStandin, fault: str, told: str, named: bool
) -> None:
    began = time.monotonic()
    with FaultyProxy(engine.url, fault) as proxy:
        line = refused(capsys, proxy.url, *(["--model=standin"] if named else []))
    if not named or fault in ("error_page", "redirect"):
        assert told in line
    else:
        wanted = {"html_200": "an HTML page", "json_200": "one JSON document",
                  "endless": "without the end of an event"}  # fmt: skip
        assert wanted[fault] in line
    assert time.monotonic() - began < 15


def test_a_server_that_never_answers(
    capsys: pytest.CaptureFixture[str], engine: EngineStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamcheck.asker.GENERATION_SECONDS", 2)
    with FaultyProxy(engine.url, "never_answers") as proxy:
        assert "never answers" in refused(capsys, proxy.url, "--model=standin")


def test_no_model(capsys: pytest.CaptureFixture[str], serve: Serve) -> None:
    url = serve(lambda request: answer_json(request, 200, {"object": "list", "data": []}))
    assert "the list of models is empty" in refused(capsys, url)


def test_a_refused_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("wrong\n")
    with EngineStandin(key="right", pace_ms=3) as engine:
        for more in ([], [f"--key-file={key}"], [f"--key-file={key}", "--model=standin"]):
            line = refused(capsys, engine.url, *more)
            assert "key is refused" in line
            assert "--key-file" in line
            assert "wrong" not in line
        key.write_text("right\n")
        assert run(capsys, engine.url, f"--key-file={key}", "--quiet")[0] == 0


def test_an_unknown_model(capsys: pytest.CaptureFixture[str], engine: EngineStandin) -> None:
    assert "404" in refused(capsys, engine.url, "--model=nobody")


def test_no_http_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    with mail_server() as port:
        assert "not with HTTP" in refused(capsys, f"http://127.0.0.1:{port}")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in the same file."""
    both = tmp_path / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", both, "-out", tmp_path / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_text(both.read_text() + (tmp_path / "cert.pem").read_text())
    return both


def test_certificates(
    capsys: pytest.CaptureFixture[str], engine: EngineStandin, certificate: Path
) -> None:
    with FaultyProxy(engine.url, "none", cert=str(certificate), key=str(certificate)) as proxy:
        line = refused(capsys, proxy.url)
        assert "is not trusted" in line
        assert "--ca" in line
        assert run(capsys, proxy.url, f"--ca={certificate}", "--quiet")[0] == 0
        assert "cannot be read" in refused(capsys, proxy.url, "--ca=/nonexistent")
    with FaultyProxy(engine.url, "none", cert=str(certificate), key=str(certificate)) as proxy:
        wrong_name = proxy.url.replace("127.0.0.1", "localhost")
        assert "is not trusted" in refused(capsys, wrong_name, f"--ca={certificate}")
    assert "does not speak TLS" in refused(capsys, engine.url.replace("http:", "https:"))


def test_gigabytes_without_an_end_take_little_memory(engine: EngineStandin) -> None:
    """In a process of its own, whose memory is bounded by the kernel."""
    with FaultyProxy(engine.url, "endless") as proxy:
        done = subprocess.run(
            [sys.executable, "-m", "streamcheck", proxy.url, "--model=standin", "--silence=0"],
            env=clean_environment(PYTHONPATH=str(ROOT / "app")), capture_output=True, text=True,
            timeout=30, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20)),
        )  # fmt: skip
    assert done.returncode == 2
    assert "without the end of an event" in done.stderr
    assert "Traceback" not in done.stderr


def test_neither_models_nor_chats(capsys: pytest.CaptureFixture[str], serve: Serve) -> None:
    url = serve(lambda request: answer_json(request, 404, {"detail": "Not Found"}))
    line = refused(capsys, url)
    assert "404" in line
    assert "OpenAI-compatible API?" in line


def test_a_service_that_knows_less(capsys: pytest.CaptureFixture[str], serve: Serve) -> None:
    """No list of models, no stream_options, no max_tokens: the check asks again without."""
    asked: list[dict[str, Any]] = []

    def answer(request: Handler) -> None:
        if request.command == "GET":
            answer_json(request, 404, {"error": {"message": "no such path"}})
            return
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        asked.append(body)
        for name, better in (("stream_options", ""), ("max_tokens", "use max_completion_tokens")):
            if name in body:
                said = f"Unsupported parameter: {name}. {better}"
                answer_json(request, 400, {"error": {"message": said}})
                return
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for n in range(20):
            chunk = {"choices": [{"delta": {"content": f"w{n} "}}]}
            event = f"data: {json.dumps(chunk)}\n\n".encode()
            request.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
            time.sleep(0.01)
        request.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    assert run(capsys, serve(answer), "--quiet")[0] == 0
    assert "max_completion_tokens" in asked[-1]
    assert "stream_options" not in asked[-1]


def test_the_servers_of_an_inventory(
    capsys: pytest.CaptureFixture[str], engine: EngineStandin, tmp_path: Path
) -> None:
    """Without a name the only one is meant; with several the line names them."""
    key = tmp_path / "key"
    key.write_text("k")
    told = {"url": engine.url, "ca": "", "model": "standin", "key_file": str(key), "ssh": []}
    for name in ("one", "two"):
        folder = tmp_path / "secrets" / name
        folder.mkdir(parents=True)
        (folder / "service.json").write_text(json.dumps(told))
        if name == "one":
            assert run(capsys, f"-i{tmp_path}/hosts.yml", "--quiet")[0] == 0
    assert "Name one of one, two" in refused(capsys, f"-i{tmp_path}/hosts.yml")
    assert run(capsys, f"-i{tmp_path}/hosts.yml", "two", "--quiet")[0] == 0
    (tmp_path / "secrets/two/service.json").write_text("{}")
    assert "run ./millrace site again" in refused(capsys, f"-i{tmp_path}/hosts.yml", "two")


def test_a_run_tells_the_key_and_what_the_server_saw(
    capsys: pytest.CaptureFixture[str], engine: EngineStandin, tmp_path: Path
) -> None:
    """By one file, as roles/verify gives it on standard input; the key file may be a vault's."""
    service, told = tmp_path / "service.json", tmp_path / "told"
    service.write_text(json.dumps({"url": engine.url, "ca": "", "model": "standin", "ssh": ["no"],
                                   "key_file": "/nonexistent"}))  # fmt: skip
    code, out, _ = run(capsys, f"--hop=nginx={engine.url}", "--model=standin", "--json")
    assert code == 0
    inner = json.loads(out)
    told.write_text(json.dumps({"key": "k\n", "inner": inner}))
    code, out, _ = run(capsys, f"--service={service}", f"--told={told}", "--json")
    assert code == 0
    assert [hop["name"] for hop in json.loads(out)["hops"]] == ["nginx", "public"]
    for wrong in ("", "[]", '{"key": "k"}', '{"key": "k", "inner": 3}'):
        told.write_text(wrong)
        assert "holds no key" in refused(capsys, f"--service={service}", f"--told={told}")
    told.write_text(json.dumps({"key": "k", "inner": {**inner, "verdict": "unreachable"}}))
    assert run(capsys, f"--service={service}", f"--told={told}", "--quiet")[0] == 2


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 127", "run ./millrace site first"),
        ("echo 'Permission denied' >&2; exit 255", "over ssh: Permission denied"),
        ("echo nonsense", "ended with 0"),
    ],
)
def test_a_server_that_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, script: str, told: str
) -> None:
    monkeypatch.setattr(remote, "command", lambda *_: ["sh", "-c", script])
    with pytest.raises(cli.CheckError, match="millrace check URL") as refusal:
        remote.inner_report(["host"], [], print)
    assert told in str(refusal.value)


def test_the_servers_progress_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "echo 'progress: nginx: POST' >&2; echo '{\"hops\": []}'"
    monkeypatch.setattr(remote, "command", lambda *_: ["sh", "-c", script])
    said: list[str] = []
    assert remote.inner_report(["host"], [], said.append) == {"hops": []}
    assert said == ["nginx: POST"]


def test_the_last_results_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "KEPT", 3)
    (tmp_path / "other").write_text("not ours")
    for n in range(5):
        told = cli.report.could_not("no", cli.datetime.datetime(2026, 11, 25, n), 1)
        keep.keep(tmp_path, told)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["latest.html", "latest.json", "other", "report-2026-11-25T020000.json",
                     "report-2026-11-25T030000.json", "report-2026-11-25T040000.json",
                     "summary.json"]  # fmt: skip


def test_h2_is_asked_where_it_is_offered(
    capsys: pytest.CaptureFixture[str], engine: EngineStandin, certificate: Path
) -> None:
    """The proxy speaks HTTP/1.1 alone: the check goes on without HTTP/2."""
    with FaultyProxy(engine.url, "none", cert=str(certificate), key=str(certificate)) as proxy:
        code, out, _ = run(capsys, proxy.url, f"--ca={certificate}", "--json")
    assert code == 0
    assert {p["protocol"] for p in json.loads(out)["hops"][0]["probes"]} == {"http/1.1"}
