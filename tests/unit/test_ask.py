"""The client that newcomers meet first: every way in which a stream can go, told in one line."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from ask.__main__ import main
from ask.stream import AskError, Tally, connect
from unit_kit import Handler, answer_json, mail_server

KEY = "k" * 40
TEXT = "Grüße, 水車 dreht 🌊 sich."


def event(text: str | None = None, **more: Any) -> bytes:
    """Return one event of an answer."""
    delta = {} if text is None else {"content": text}
    data = {"choices": [{"index": 0, "delta": delta}], **more}
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
BEAT = b": keep-alive\n\n"


class Service:
    """A service that streams given pieces, and notes what it was asked."""

    def __init__(self, pieces: Iterable[bytes] = (), pause: float = 0.0) -> None:
        self.pieces, self.pause = list(pieces), pause
        self.cut = False
        self.refusal: tuple[int, Any] | None = None
        self.models: Any = {"data": [{"id": "recital"}]}
        self.asked: list[tuple[str, Any]] = []

    def __call__(self, request: Handler) -> None:
        """Answer one request."""
        length = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(length)) if length else None
        self.asked.append((request.path, body))
        if request.headers["Authorization"] != f"Bearer {KEY}":
            answer_json(request, 401, {"error": {"message": "this key is not known"}})
        elif self.refusal:
            answer_json(request, *self.refusal)
        elif request.path.endswith("/models"):
            answer_json(request, 200, self.models)
        else:
            self.stream(request)

    def stream(self, request: Handler) -> None:
        """Send the pieces, each as a chunk of its own."""
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for piece in self.pieces:
            request.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            request.wfile.flush()
            time.sleep(self.pause)
        if self.cut:
            request.close_connection = True
        else:
            request.wfile.write(b"0\r\n\r\n")


Ask = Callable[..., int]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Return a function that runs the command line and gives its exit code."""

    def run(*arguments: str, key: str = KEY) -> int:
        monkeypatch.setenv("MILLRACE_KEY", key)
        monkeypatch.setattr(sys, "argv", ["ask", *arguments])
        return main()

    return run


Serve = Callable[..., str]
Printed = pytest.CaptureFixture[str]


def one_line(printed: Printed) -> str:
    """Return the one line of complaint."""
    said = printed.readouterr().err
    assert said.startswith("ask: ")
    assert said.count("\n") == 1, said
    assert KEY not in said
    return said


# What goes well ------------------------------------------------------------------------------


def test_the_answer_is_printed_and_measured(serve: Serve, ask: Ask, capsys: Printed) -> None:
    service = Service([event("The "), event("mill "), event("turns."), DONE], pause=0.02)
    assert ask(serve(service), "How?") == 0
    answer, figures = capsys.readouterr().out.split("\n\n")
    assert answer == "The mill turns."
    assert "3 tokens" in figures
    assert "1.00 events per read" in figures
    assert service.asked[0] == ("/v1/models", None)
    path, body = service.asked[1]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "recital",
        "messages": [{"role": "user", "content": "How?"}],
        "stream": True,
    }


def test_pieces_are_printed_as_they_come(serve: Serve) -> None:
    service = Service([event("one "), event("two "), DONE], pause=0.5)
    with subprocess.Popen(
        [sys.executable, "-m", "ask", serve(service), "How?"],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "app"), "MILLRACE_KEY": KEY},
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(4)
        early = process.poll() is None
        process.stdout.read()
    assert first == b"one "
    assert early
    assert process.returncode == 0


def test_heartbeats_are_not_text(serve: Serve, ask: Ask, capsys: Printed) -> None:
    service = Service([BEAT, event("a"), BEAT, BEAT, event("b"), BEAT, DONE], pause=0.01)
    assert ask(serve(service)) == 0
    out = capsys.readouterr().out
    assert out.startswith("ab\n\n")
    assert "2 tokens" in out


def test_events_without_text_are_not_tokens(serve: Serve, ask: Ask, capsys: Printed) -> None:
    role = b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n'
    usage = b'data: {"choices": [], "usage": {"total_tokens": 9}}\n\n'
    assert ask(serve(Service([role, event("a"), event(None), usage, DONE], pause=0.01))) == 0
    assert "1 tokens" in capsys.readouterr().out


def test_letters_may_be_cut_anywhere(serve: Serve, ask: Ask, capsys: Printed) -> None:
    whole = event(TEXT) + DONE
    for size in (1, 3, 7):
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert ask(serve(Service(pieces))) == 0
        assert capsys.readouterr().out.startswith(TEXT + "\n")


def test_held_back_events_show_in_the_figures(serve: Serve, ask: Ask, capsys: Printed) -> None:
    held = b"".join([event("a")] * 10)
    assert ask(serve(Service([held, held, DONE], pause=0.05))) == 0
    assert "10.00 events per read" in capsys.readouterr().out


def test_quiet_prints_the_figures_only(serve: Serve, ask: Ask, capsys: Printed) -> None:
    service = Service([event("a"), DONE], pause=0.01)
    assert ask(serve(service), "--quiet", "--max-tokens", "5", "--model", "m") == 0
    assert capsys.readouterr().out.startswith("first token after ")
    assert [path for path, _ in service.asked] == ["/v1/chat/completions"]
    assert service.asked[0][1]["max_tokens"] == 5
    assert service.asked[0][1]["model"] == "m"


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
def test_the_address_may_end_as_clients_write_it(serve: Serve, ask: Ask, tail: str) -> None:
    service = Service([event("a"), DONE])
    assert ask(serve(service) + tail) == 0
    assert [path for path, _ in service.asked] == ["/v1/models", "/v1/chat/completions"]


def test_a_service_under_a_path_is_asked_there(serve: Serve, ask: Ask) -> None:
    service = Service([event("a"), DONE])
    assert ask(serve(service) + "/chat/v1") == 0
    assert [p for p, _ in service.asked] == ["/chat/v1/models", "/chat/v1/chat/completions"]


def test_the_key_may_come_from_a_file(serve: Serve, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    service = Service([event("a"), DONE])
    assert ask(serve(service), "--key-file", str(tmp_path / "key"), key="") == 0


# Broken off: exit code 1 ---------------------------------------------------------------------


def test_an_error_event_ends_it_with_its_message(serve: Serve, ask: Ask, capsys: Printed) -> None:
    error = b'data: {"error": {"message": "the engine went away", "code": "x"}}\n\n'
    assert ask(serve(Service([event("a"), error, DONE]))) == 1
    assert "the engine went away" in one_line(capsys)


def test_a_stream_that_is_cut_is_told(serve: Serve, ask: Ask, capsys: Printed) -> None:
    service = Service([event("a"), event("b")], pause=0.01)
    service.cut = True
    assert ask(serve(service)) == 1
    assert "cut" in one_line(capsys)


def test_a_stream_that_ends_without_its_mark_is_told(
    serve: Serve, ask: Ask, capsys: Printed
) -> None:
    assert ask(serve(Service([event("a")]))) == 1
    assert "cut" in one_line(capsys)


def test_an_answer_without_a_token_is_no_answer(serve: Serve, ask: Ask, capsys: Printed) -> None:
    assert ask(serve(Service([DONE]))) == 1
    one_line(capsys)


def test_silence_in_mid_answer_is_told(serve: Serve, ask: Ask, capsys: Printed) -> None:
    service = Service([event("a"), event("b"), DONE], pause=1.0)
    assert ask(serve(service), "--timeout", "0.3") == 1
    one_line(capsys)


def test_an_event_that_is_no_json_is_told(serve: Serve, ask: Ask, capsys: Printed) -> None:
    assert ask(serve(Service([event("a"), b"data: {nope\n\n", DONE]))) == 1
    one_line(capsys)


# Could not be asked: exit code 2 -------------------------------------------------------------


def test_a_wrong_key_is_told_in_one_clear_line(serve: Serve, ask: Ask, capsys: Printed) -> None:
    assert ask(serve(Service()), key="wrong") == 2
    said = one_line(capsys)
    assert "401" in said
    assert "this key is not known" in said
    assert "wrong" not in said


@pytest.mark.parametrize("body", [{"error": "no"}, {"detail": "no"}, "plain", [], {}])
def test_a_refusal_in_any_shape_is_one_line(
    serve: Serve, ask: Ask, capsys: Printed, body: Any
) -> None:
    service = Service()
    service.refusal = (503, body)
    assert ask(serve(service)) == 2
    assert "503" in one_line(capsys)


@pytest.mark.parametrize("models", [{}, {"data": []}, {"data": [{}]}, []])
def test_a_service_without_a_model_is_told(
    serve: Serve, ask: Ask, capsys: Printed, models: Any
) -> None:
    service = Service()
    service.models = models
    assert ask(serve(service)) == 2
    assert "no model" in one_line(capsys)


def test_nobody_there_is_told(ask: Ask, capsys: Printed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert ask(f"http://127.0.0.1:{port}") == 2
    said = one_line(capsys)
    assert "127.0.0.1" in said
    assert "refused" in said


def test_something_that_speaks_no_http_is_told(ask: Ask, capsys: Printed) -> None:
    with mail_server() as port:
        assert ask(f"http://127.0.0.1:{port}") == 2
    one_line(capsys)


@pytest.mark.parametrize("url", ["chat.example.org", "ftp://x", "https://", "https://x:port"])
def test_what_is_no_address_is_told(ask: Ask, capsys: Printed, url: str) -> None:
    assert ask(url) == 2
    assert url in one_line(capsys)


def test_without_a_key_it_says_how_to_give_one(ask: Ask, capsys: Printed) -> None:
    assert ask("http://127.0.0.1:9", key="") == 2
    said = one_line(capsys)
    assert "--key-file" in said
    assert "MILLRACE_KEY" in said


def test_a_key_file_that_is_not_there_is_named(ask: Ask, capsys: Printed, tmp_path: Path) -> None:
    assert ask("http://127.0.0.1:9", "--key-file", str(tmp_path / "gone")) == 2
    assert str(tmp_path / "gone") in one_line(capsys)


# Certificates --------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Make a self-signed certificate as the role `tls` does."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed here")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", tmp_path / "server.key", "-out", tmp_path / "server.crt"],
        capture_output=True, check=True,
    )  # fmt: skip
    return tmp_path / "server.crt"


def tls(certificate: Path) -> ssl.SSLContext:
    """Return a server's context for the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("server.key"))
    return context


def test_a_self_signed_service_is_trusted_by_its_file(
    serve: Serve, ask: Ask, certificate: Path
) -> None:
    url = serve(Service([event("a"), DONE]), tls(certificate))
    assert ask(url, "--ca", str(certificate)) == 0


def test_an_untrusted_certificate_says_what_to_do(
    serve: Serve, ask: Ask, certificate: Path, capsys: Printed
) -> None:
    assert ask(serve(Service(), tls(certificate))) == 2
    said = one_line(capsys)
    assert "--ca" in said
    assert "self-signed" in said or "self signed" in said


def test_a_certificate_file_that_is_not_there_is_named(ask: Ask, capsys: Printed) -> None:
    assert ask("https://127.0.0.1:9", "--ca", "/no/such/server.crt") == 2
    assert "/no/such/server.crt" in one_line(capsys)


# Figures -------------------------------------------------------------------------------------


def test_figures_of_nothing_are_zero() -> None:
    assert Tally().events_per_read == 0
    assert Tally().tokens_per_second == 0


def test_pace_is_that_after_the_first_token() -> None:
    tally = Tally(first_token_seconds=1.0, last_token_seconds=3.0, tokens=21, reads=21, events=21)
    assert tally.tokens_per_second == 10
    assert tally.events_per_read == 1


def test_an_address_must_have_a_host() -> None:
    with pytest.raises(AskError, match="write https://host"):
        connect("https:///v1", None, 1)
