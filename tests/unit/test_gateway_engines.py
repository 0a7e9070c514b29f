"""LiteLLM's side of the express lane: who may ask which engine is next, and what is answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from gateway.engines import CHOOSE, FAILED, EngineDesk

KEY = "sk-" + "m" * 40
CHOSEN = {"litellm_params": {"api_key": "engine-key"}, "model_info": {"id": "main"}}


class Router:
    """In the place of LiteLLM's."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, int, int]] = []
        self.refuses = False

    async def select(self, model: str, request_kwargs: dict[str, object]) -> dict[str, Any]:
        if self.refuses:
            raise RuntimeError(f"all rest, and {model} is a secret word")
        return CHOSEN

    def health(self) -> Router:
        return self

    def record_failure(self, engine: str, error: Any, status: int) -> None:
        self.failures.append((engine, error.status_code, status))


async def inner(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b"inner"})


async def ask(
    router: Router | None, path: str, body: bytes, *shown: str, method: str = "POST",
    master_key: str | None = KEY,
) -> tuple[int, Any]:  # fmt: skip
    """Ask the desk; return status and what came."""
    sent: list[Any] = []
    parts = [body[:5], body[5:]]

    async def receive() -> Any:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {key}".encode()) for key in shown]
    scope = {"type": "http", "path": path, "method": method, "headers": headers}
    await EngineDesk(inner, lambda: router, lambda: master_key)(scope, receive, send)
    data = sent[1]["body"]
    return sent[0]["status"], json.loads(data) if data[:1] == b"{" else data


QUESTION = b'{"model": "tiny"}'


async def test_it_says_which_engine_and_its_key() -> None:
    answer = await ask(Router(), CHOOSE, QUESTION, KEY)
    assert answer == (200, {"engine": "main", "key": "engine-key"})


async def test_it_hears_of_failures() -> None:
    router = Router()
    answer = await ask(router, FAILED, b'{"engine": "main", "status": 502}', KEY)
    assert answer == (204, b"")
    assert router.failures == [("main", 502, 502)]


@pytest.mark.parametrize("shown", [(), ("wrong",), (KEY, KEY), (KEY[:-1],), ("",)])
@pytest.mark.parametrize("path", [CHOOSE, FAILED])
async def test_the_master_key_is_wanted(shown: tuple[str, ...], path: str) -> None:
    router = Router()
    body = b'{"model": "tiny", "engine": "main", "status": 500}'
    assert (await ask(router, path, body, *shown))[0] == 401
    assert not router.failures


@pytest.mark.parametrize("master_key", [None, ""])
async def test_without_a_master_key_nobody_may(master_key: str | None) -> None:
    assert (await ask(Router(), CHOOSE, QUESTION, "", master_key=master_key))[0] == 401


async def test_no_engine_is_503_without_a_word_of_the_request() -> None:
    router = Router()
    router.refuses = True
    status, told = await ask(router, CHOOSE, QUESTION, KEY)
    assert status == 503
    assert "secret" not in json.dumps(told)
    assert (await ask(None, CHOOSE, QUESTION, KEY))[0] == 503


@pytest.mark.parametrize(
    "body", [b"", b"x" * 10, b"[]", b"{}", b'{"model": 3}', b'{"model": "' + b"x" * 5000 + b'"}']
)
async def test_what_makes_no_sense(body: bytes) -> None:
    assert (await ask(Router(), CHOOSE, body, KEY))[0] == 400
    assert (await ask(Router(), FAILED, body, KEY))[0] == 400


async def test_only_its_own_paths_and_method() -> None:
    assert (await ask(Router(), CHOOSE, QUESTION, KEY, method="GET"))[0] == 405
    for path in ("/vllm/v1/chat/completions", CHOOSE + "/", "/millrace"):
        assert await ask(Router(), path, QUESTION, KEY) == (299, b"inner")
