"""Which engine is next, for answers that do not come through LiteLLM.

On the express lane (docs/express.md) nginx streams from the engine itself. LiteLLM still decides
which engine, by its router's strategy, weights and cooldowns, and hears of an engine that failed,
so that it rests as it would after a failure here. Two small questions, with the master key:

    POST /millrace/engines           {"model": …}            -> {"engine": its id, "key": its key}
    POST /millrace/engines/failures  {"engine": …, "status": …}    -> 204

They are answered in front of LiteLLM's own layers, which take milliseconds and log what passes.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from gateway.access_log import App, Receive, Send

CHOOSE = "/millrace/engines"
FAILED = "/millrace/engines/failures"
_MOST_BYTES = 4096


class EngineFailedError(Exception):
    """What LiteLLM's router is told; it reads the status."""

    def __init__(self, status: int) -> None:
        """Name the status."""
        super().__init__(f"the engine failed with status {status}")
        self.status_code = status


class EngineDesk:
    """ASGI middleware that answers the two questions; everything else goes on to `app`.

    `router` and `master_key` return LiteLLM's, which makes them after this was put in place.
    """

    def __init__(
        self, app: App, router: Callable[[], Any], master_key: Callable[[], str | None]
    ) -> None:
        """Wrap `app`."""
        self.app = app
        self._router = router
        self._master_key = master_key

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http" or scope["path"] not in (CHOOSE, FAILED):
            await self.app(scope, receive, send)
            return
        if scope["method"] != "POST":
            status, body = 405, {"error": "POST only"}
        elif not self._may(scope):
            status, body = 401, {"error": "wrong key"}
        else:
            asked = await _read(receive)
            if asked is None:
                status, body = 400, {"error": "a small JSON object is wanted"}
            elif scope["path"] == CHOOSE:
                status, body = await self._choose(asked)
            else:
                status, body = self._failed(asked)
        data = b"" if status == 204 else json.dumps(body).encode("ascii")
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(data)).encode("ascii")),
        ]
        if status == 204:
            headers = []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    def _may(self, scope: Mapping[str, Any]) -> bool:
        key = self._master_key()
        shown = [value for name, value in scope["headers"] if name == b"authorization"]
        return bool(key) and len(shown) == 1 and hmac.compare_digest(
            shown[0], f"Bearer {key}".encode()
        )  # fmt: skip

    async def _choose(self, asked: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        model, router = asked.get("model"), self._router()
        if not isinstance(model, str):
            return 400, {"error": "model is wanted"}
        if router is None:
            return 503, {"error": "there is no router yet"}
        try:
            chosen = await router.select(model, {})
        except Exception as error:  # LiteLLM's own differ by what rests and what is not known
            return 503, {"error": f"no engine: {type(error).__name__}"}
        given = chosen["litellm_params"]
        return 200, {"engine": chosen["model_info"]["id"], "key": given.get("api_key") or ""}

    def _failed(self, asked: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        engine, status, router = asked.get("engine"), asked.get("status"), self._router()
        if not isinstance(engine, str) or not isinstance(status, int):
            return 400, {"error": "engine and status are wanted"}
        if router is not None:
            router.health().record_failure(engine, EngineFailedError(status), status)
        return 204, {}


async def _read(receive: Receive) -> dict[str, Any] | None:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > _MOST_BYTES:
            return None
        if not message.get("more_body", False):
            break
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return asked if isinstance(asked, dict) else None
