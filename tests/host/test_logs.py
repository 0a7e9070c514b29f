"""The journal: one id through all hops, and never a word of what people ask or are told."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shlex
import ssl
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import UNITS
from servers import Server
from test_api import ask, chat
from wire import Reads

# They stand early in the answer, and in nothing else that a server logs.
ANSWER_WORDS = ("hurries", "alder", "weir")
CHAT = "/v1/chat/completions"
# Whatever their instances are called.
JOURNALS = {
    "nginx": "nginx",
    "backend": "millrace-backend*",
    "litellm": "millrace-litellm",
    "vllm": "millrace-vllm@*",
}
HOPS = ("backend", "litellm", "vllm")


def lines_of(server: Server, hop: str, name: str) -> list[str]:
    """Return the lines of one hop's journal that hold `name`."""
    told = server.run(f"journalctl --no-pager -o cat -n 2000 -u '{JOURNALS[hop]}'")
    return [line for line in told.splitlines() if name in line]


def request_line(server: Server, hop: str, name: str) -> dict[str, Any]:
    """Return the line of JSON that a hop wrote of a request; the last where it was sent again."""
    *_, line = lines_of(server, hop, name)
    found = json.loads(line)
    assert found["event"] == "request"
    assert found["request_id"] == name
    return dict(found)


def send(server: Server, path: str, body: bytes, key: str | None = None) -> int:
    """POST any bytes from outside and read the answer; 0 when there is no whole one."""
    context = ssl.create_default_context(cafile=str(server.secrets / "server.crt"))
    link = http.client.HTTPSConnection(server.address, timeout=60, context=context)
    headers = {"Authorization": f"Bearer {key or server.key}", "Content-Type": "application/json"}
    try:
        link.request("POST", path, body, headers)
        answer = link.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        link.close()


def marked() -> str:
    """Return a word that was never written before."""
    return f"zanzibarine{time.time_ns()}"


def asking(marker: str, **more: Any) -> dict[str, Any]:
    """A streamed chat that has the word in every text that a client may send along."""
    text = f"Tell me of {marker}, käse 漢字 \U0001f30a \u2028 and the end"
    return chat(**{"messages": [{"role": "user", "content": text}], "max_tokens": 120, **more})


def found_in(server: Server, words: tuple[str, ...], since: float) -> dict[str, str]:
    """Return where each of `words` stands that is in a log, and a piece of it.

    The whole journal in its rawest form, every file under /var/log, and whatever our services
    wrote anywhere.
    """
    places = (
        "/var/log /var/tmp /tmp /run/millrace* /var/lib/millrace-* /var/cache/millrace-*"
        " /var/lib/systemd/coredump"
    )
    found = {}
    for word in words:
        quoted = shlex.quote(word)
        told = server.run(
            f"journalctl --no-pager --all -o export --since @{int(since)}"
            f" | grep -aF -m 3 {quoted}; "
            f"grep -rlaF --exclude-dir=journal {quoted} {places} 2>/dev/null",
            check=False,
        )
        if told.strip():
            found[word] = told[:500]
    return found


def test_one_id_through_every_journal(engine: Server) -> None:
    seen = ask(engine, asking(marked()))
    assert seen.ended
    name = seen.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", name)
    time.sleep(1)
    (edge,) = lines_of(engine, "nginx", name)
    assert f'"POST {CHAT} HTTP/1.1" 200' in edge
    for hop in HOPS:
        line = request_line(engine, hop, name)
        assert line["status"] == 200
        assert line["ended"] == "complete"
        assert line.get("hop", hop) == hop
        # Every hop passed the same bytes on, except what the backend asked for and kept.
        assert line["body_bytes"] >= len(seen.body) * 0.8
        assert 0 < line["first_byte_seconds"] <= line["duration_seconds"]
    assert request_line(engine, "backend", name)["completion_tokens"] == 120


def test_who_left_is_in_every_journal(engine: Server) -> None:
    seen = ask(engine, asking(marked(), max_tokens=4000, ignore_eos=True), leave_after=3)
    name = seen.headers["x-request-id"]
    time.sleep(2)
    for hop in HOPS:
        assert request_line(engine, hop, name)["ended"] == "client_left", hop


def refusals(server: Server, marker: str) -> dict[str, int]:
    """Send what is refused, each with the word in it; return each one's status."""
    good = asking(marker)

    def as_json(body: dict[str, Any]) -> bytes:
        return json.dumps(body, ensure_ascii=False).encode()

    schema = {"name": marker, "schema": {"type": "object", "properties": {marker: {}}}}
    tool = {"type": "function", "function": {"name": marker, "description": marker}}
    bodies: dict[str, tuple[str, bytes]] = {
        "more tokens than there are": (CHAT, as_json({**good, "max_tokens": 10_000_000})),
        "cut JSON": (CHAT, as_json(good)[:-20]),
        "no JSON": (CHAT, marker.encode()),
        "a string": (CHAT, json.dumps(marker).encode()),
        "not UTF-8": (CHAT, as_json(good).replace("ä".encode(), b"\xff\xfe")),
        "half a surrogate": (CHAT, json.dumps(asking(f"\\ud83d{marker}")).encode()),
        "deep": (CHAT, b'{"messages": ' + b"[" * 5000 + marker.encode()),
        "an unknown field": (CHAT, as_json({**good, marker: marker})),
        "an unknown model": (CHAT, as_json({**good, "model": marker})),
        "a role of its own": (CHAT, as_json({**good, "messages": [{"role": marker}]})),
        "messages of another kind": (CHAT, as_json({**good, "messages": {"x": marker}})),
        "a stop word of another kind": (CHAT, as_json({**good, "stop": {"x": marker}})),
        "a schema": (CHAT, as_json({**good, "response_format": {"type": marker}})),
        "a wrong schema": (
            CHAT,
            as_json({**good, "response_format": {"type": "json_schema", "json_schema": schema}}),
        ),
        "a tool": (CHAT, as_json({**good, "tools": [tool], "tool_choice": marker})),
        "an image": (
            CHAT,
            as_json(
                {
                    **good,
                    "messages": [
                        {
                            "role": "user",
                            "content": [{"type": "image_url", "image_url": {"url": marker}}],
                        }
                    ],
                }
            ),
        ),
        "a prompt of another kind": (
            "/v1/completions",
            as_json({"model": "recital", "prompt": 7, "suffix": marker}),
        ),
        "an embedding": ("/v1/embeddings", as_json({"model": "recital", "input": marker})),
        "a query": (f"{CHAT}?q={marker}", as_json({**good, "max_tokens": -1})),
        "a log-in": ("/v1/session", as_json({"key": marker})),
    }
    told = {name: send(server, path, body) for name, (path, body) in bodies.items()}
    told["a wrong key"] = send(server, CHAT, as_json(good), key=marker)
    return told


def test_no_word_of_anybody_in_any_log(engine: Server) -> None:
    began, marker = time.time(), marked()
    plain = {"model": "recital", "stream": True}
    answered: list[Reads] = [
        ask(engine, asking(marker)),
        ask(engine, asking(marker, stream=False), "h2"),
        ask(engine, asking(marker, stop=[marker], user=marker)),
        ask(engine, {**plain, "prompt": marker, "max_tokens": 40}, path="/v1/completions"),
        ask(engine, {**plain, "input": marker, "max_output_tokens": 40}, path="/v1/responses"),
        ask(engine, asking(marker, max_tokens=4000, ignore_eos=True), leave_after=3),
    ]  # fmt: skip
    assert [seen.status for seen in answered] == [200] * len(answered)
    # What is looked for was really said.
    assert all(word in answered[0].text for word in ANSWER_WORDS)
    told = refusals(engine, marker)
    assert [status for status in told.values() if status >= 400], told
    assert not {name for name, status in told.items() if status == 0}, told
    time.sleep(2)
    assert found_in(engine, (marker, *ANSWER_WORDS), began - 1) == {}


@pytest.mark.breaks
@pytest.mark.timeout(900)
def test_nor_when_the_engine_dies_in_the_middle(
    engine: Server, until_ready: Callable[[], float]
) -> None:
    """Its own front says what broke, and LiteLLM what it met: neither shows what was being said."""
    began, marker = time.time(), marked()
    unit = UNITS["engine"]
    core = f"pgrep -f EngineCore -P $(systemctl show -p MainPID --value '{unit}')"
    broken = asking(marker, max_tokens=4000, ignore_eos=True, stop=[f"never {marker}"])
    in_a_second = "--on-active=1 --timer-property=AccuracySec=100ms"
    kill = f"systemd-run --quiet {in_a_second} sh -c 'kill -9 $({core})'"
    engine.run(kill)
    seen = Reads()
    with contextlib.suppress(AssertionError, OSError):
        seen = ask(engine, broken)
    assert b'"error"' in seen.body, "the engine did not die in the middle"
    assert b'"content":"' in seen.body
    # While it loads again, requests meet a gateway that knows no engine.
    send(engine, CHAT, json.dumps(asking(marker, stream=False, max_tokens=5)).encode())
    until_ready()
    assert found_in(engine, (marker, *ANSWER_WORDS), began - 1) == {}
