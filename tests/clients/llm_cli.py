"""What people do with the `llm` command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from kit import BEGINNING, HOLD, KEY, MODEL, URL, fits_schema, run, scenario

ASKED = "How does the water find its way?"
LLM = str(Path(sys.executable).with_name("llm"))
GATE = json.dumps({
    "type": "object",
    "properties": {"stage": {"enum": ["weir", "wheel", "race"]}, "open": {"type": "boolean"}},
    "required": ["stage", "open"],
})  # fmt: skip

folder = Path(tempfile.mkdtemp())
entry = {"model_name": MODEL, "api_base": URL, "api_key_name": "millrace"}
entries = [
    {"model_id": "mill", **entry, "supports_schema": True},
    {"model_id": "mill-text", **entry, "completion": True},
    {"model_id": "nobody", **entry, "model_name": "nobody"},
]
# JSON is YAML as well.
(folder / "extra-openai-models.yaml").write_text(json.dumps(entries))
environment = {**os.environ, "LLM_USER_PATH": str(folder)}


def llm(*arguments: str, key: str = KEY, good: bool = True) -> str:
    done = subprocess.run(
        [LLM, *arguments, "--key", key],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == good, done.stdout + done.stderr
    return done.stdout if good else done.stderr


@scenario("chat, streamed")
def chat_streamed() -> None:
    assert llm("-m", "mill", "-s", "Recite.", "-o", "max_tokens", "30", ASKED).startswith(BEGINNING)


@scenario("chat")
def chat() -> None:
    told = llm("-m", "mill", "--no-stream", "-u", "-o", "max_tokens", "30", ASKED)
    assert told.startswith(BEGINNING)


@scenario("JSON by schema")
def json_schema() -> None:
    fits_schema(llm("-m", "mill", "--schema", GATE, "-o", "max_tokens", "200", ASKED))


@scenario("completions")
def completions() -> None:
    assert llm("-m", "mill-text", "-o", "max_tokens", "8", "The mill").strip()


@scenario("refusals say what is wrong")
def refusals() -> None:
    assert "Incorrect API key" in llm("-m", "mill", ASKED, key="mr-wrong", good=False)
    assert "does not exist" in llm("-m", "nobody", ASKED, good=False)


@scenario("leaving in mid-stream frees the engine")
def leaving() -> str:
    command = [LLM, "-m", "mill", "-o", "max_tokens", "8000", ASKED, "--key", KEY]
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        # What runs in the background of a shell is started deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as asked:
        assert asked.stdout.read(20)
        asked.send_signal(signal.SIGINT)
        asked.wait(20)
    return HOLD


run()
