"""The line that LiteLLM and vLLM write of a request: an id and times, and no word of anybody's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from gateway import access_log
from gateway.access_log import AccessLog
from planner.serving import ENGINE_DIR
from test_templates import plan_for
from unit_kit import ROOT

Message = MutableMapping[str, Any]
SECRET = b'{"messages": [{"content": "zanzibarine"}]}'


class Written:
    """What went to the journal."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def text(self) -> str:
        return self.file.read_text()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    file = tmp_path / "stderr"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    monkeypatch.setattr(access_log, "STDERR", descriptor)
    yield Written(file)
    os.close(descriptor)


async def ask(
    app: Any, *, name: bytes = b"abcd-1234", path: str = "/v1/x", left: bool = False
) -> list[Message]:
    """Send one request through the layer; return what came out."""
    sent: list[Message] = []
    messages = iter(
        [{"type": "http.request", "body": SECRET}, *([{"type": "http.disconnect"}] if left else [])]
    )

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "query_string": b"q=zanzibarine",
        "headers": [(b"authorization", b"Bearer zanzibarine"), (b"x-request-id", name)],
    }  # fmt: skip
    await AccessLog(app)(scope, receive, send)
    return sent


def answer(status: int = 200, *bodies: bytes, whole: bool = True) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": status, "headers": []})
        for number, body in enumerate(bodies, 1):
            more = number < len(bodies) or not whole
            await send({"type": "http.response.body", "body": body, "more_body": more})

    return app


async def test_a_request_has_one_line_and_its_bytes_pass(written: Written) -> None:
    sent = await ask(answer(200, b"zanzi", b"barine"))
    assert [message.get("body") for message in sent] == [None, b"zanzi", b"barine"]
    (line,) = written.lines
    assert line.pop("duration_seconds") >= line.pop("first_byte_seconds") >= 0
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info", "event": "request", "hop": "vllm", "request_id": "abcd-1234",
        "method": "POST", "path": "/v1/x", "status": 200, "body_bytes": 11, "ended": "complete",
    }  # fmt: skip
    assert "zanzi" not in written.text


async def test_who_left_is_told_from_what_failed(written: Written) -> None:
    async def left(scope: Any, receive: Any, send: Any) -> None:
        await answer(200, b"a", whole=False)(scope, receive, send)
        await receive()

    async def crash(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("zanzibarine")

    await ask(left, left=True)
    await ask(answer(200, b"a", whole=False))
    with pytest.raises(ValueError, match="zanzibarine"):
        await ask(crash)
    assert [line["ended"] for line in written.lines] == ["client_left", "error", "error"]
    assert written.lines[2]["status"] == 0
    assert "zanzi" not in written.text


async def test_a_probe_has_a_line_only_when_something_is_wrong(written: Written) -> None:
    await ask(answer(200, b"x"), name=b"ready-12345")
    await ask(answer(200, b"x"), path="/health")
    assert not written.text
    await ask(answer(503, b"x"), name=b"ready-12345")
    await ask(answer(200, b"x", whole=False), path="/health")
    assert len(written.lines) == 2


@pytest.mark.parametrize("name", [b"short", b"x" * 129, b"a b c d e f", b"\xff\xfe12345678"])
async def test_an_id_that_is_none_is_not_logged(written: Written, name: bytes) -> None:
    await ask(answer(200, b"x"), name=name)
    assert written.lines[0]["request_id"] is None


def test_vllms_loggers_that_quote_people_are_silent() -> None:
    """As vLLM 0.32 has them; the formatter is vLLM's own and stands aside here."""
    told = json.loads((ROOT / "roles/vllm/files/logging.json").read_text())
    told["formatters"]["vllm"]["class"] = "logging.Formatter"
    told["formatters"]["vllm"]["format"] = "%(message)s"
    script = f"""
import logging, logging.config
logging.config.dictConfig({told!r})
for name in ("tool_parsers.llama_tool_parser", "reasoning.deepseek_r1", "parser.abstract",
             "logging_utils.dump_input"):
    logging.getLogger("vllm." + name).error("zanzibarine")
logging.getLogger("vllm.v1.engine.core").error("a real problem")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr == "a real problem\n"
    assert done.stdout == ""


async def test_a_journal_that_is_gone_fails_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "STDERR", 9999)
    assert len(await ask(answer(200, b"x"))) == 2


def test_vllm_can_load_it_by_itself(tmp_path: Path) -> None:
    """From what the role puts beside vLLM, with the standard library and nothing else of ours.

    One name, and not a list of them: vLLM's settings file has no way to name two.
    """
    tasks = yaml.safe_load((ROOT / "roles/vllm/tasks/configure.yml").read_text())
    (placed,) = [task["placed_files"]["entries"] for task in tasks if "placed_files" in task]
    for entry in placed:
        if "/app/" in entry.get("src", ""):
            target = tmp_path / Path(entry["path"]).relative_to(ENGINE_DIR)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / "app" / entry["src"].partition("/app/")[2], target)
    plan = plan_for("bookworm")
    (named,) = plan["engines"][0]["arguments"]["middleware"]
    module, _, layer = named.rpartition(".")
    script = (
        f"import importlib, sys; sys.path.insert(0, {str(tmp_path)!r}); "
        f"getattr(importlib.import_module({module!r}), {layer!r})(app=print)"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True)
