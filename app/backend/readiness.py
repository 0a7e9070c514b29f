"""Ready means that a token really came out of the engine lately."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid

from backend.apis import CHAT
from backend.errors import ApiError
from backend.hardware import HardwareReports
from backend.settings import Settings
from backend.tokens import shows_token
from backend.upstream import Upstream, read_some

log = logging.getLogger(__name__)

# After a failed probe the next one comes sooner: an engine that starts should not wait for us.
_RETRY_SECONDS = 2.0
_LONGEST_LINE_BYTES = 64 * 1024


class Readiness:
    """Knows when this process last saw a token, and asks for one when it has been too long.

    Streams that pass through count, so a busy engine is never probed. Otherwise a one-token
    streaming request takes the same way as every other. Each worker process has its own
    connections and so its own view. Times are `time.monotonic()` seconds.
    """

    def __init__(self, settings: Settings, upstream: Upstream) -> None:
        self._upstream = upstream
        self._interval = settings.ready_probe_interval_seconds
        self._max_age = settings.ready_max_age_seconds
        self._hardware = HardwareReports(settings.hardware_reports)
        self._last_token: float | None = None
        self._failure = "no probe has finished yet"
        self._looked = asyncio.Event()
        # From here on the relay should show what it sends: looking for a token in an event costs
        # as much as sending it, so one event in a while must do.
        self.wanted_from = 0.0
        self._probe_body = json.dumps(
            {
                "model": settings.models[0].id,
                "messages": [{"role": "user", "content": "Hi"}],
                "max_tokens": 1,
                "stream": True,
                # A first token that ends the answer has no text; the count proves it anyway.
                "stream_options": {"include_usage": True},
            }
        ).encode("ascii")

    def look_at(self, events: bytes) -> None:
        """Take note if `events` (of a live stream) show a token."""
        if shows_token(events):
            self._last_token = time.monotonic()
            self.wanted_from = self._last_token + self._interval / 2

    def token_came(self, moment: float) -> None:
        """Take note that the engine gave a token then, which another hop saw."""
        if self._last_token is None or moment > self._last_token:
            self._last_token = moment

    def token_age(self) -> float | None:
        """Return how many seconds ago the last token was seen, or None."""
        return None if self._last_token is None else time.monotonic() - self._last_token

    def report(self) -> tuple[bool, dict[str, object]]:
        """Return whether we are ready, and the body of GET /readyz.

        `last_token_age_seconds` is null while no token has been seen; `reason` is there when not
        ready. `hardware` says what the guard found that was not planned, where there is anything.
        """
        age = self.token_age()
        ready = age is not None and age <= self._max_age
        body: dict[str, object] = {
            "ready": ready,
            "last_token_age_seconds": None if age is None else round(age, 3),
        }
        if not ready:
            seen = (
                "no token has come from the engine yet"
                if age is None
                else f"no token has come from the engine for {age:.0f} seconds"
            )
            body["reason"] = f"{seen}; last probe: {self._failure}"
        if found := self._hardware.read():
            body["hardware"] = found
        return ready, body

    async def first_look(self, timeout_seconds: float) -> None:
        """Wait until the first probe has finished, however it ended, or the time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._looked.wait()

    async def keep_watch(self) -> None:
        """Probe for ever, whenever no token was seen for the probe interval."""
        while True:
            age = self._interval
            if self._last_token is not None:
                age = time.monotonic() - self._last_token
            if age < self._interval:
                await asyncio.sleep(self._interval - age)
                continue
            failure = await self._probe()
            self._looked.set()
            if failure is not None:
                if failure != self._failure:
                    log.warning("the engine gives no token: %s", failure)
                self._failure = failure
                await asyncio.sleep(min(self._interval, _RETRY_SECONDS))

    async def _probe(self) -> str | None:
        """Ask for one token; return None if it came, else why not, in plain words."""
        try:
            async with asyncio.timeout(self._max_age):
                return await self._ask_for_one_token()
        except TimeoutError:
            return f"no token within {self._max_age:g} seconds"
        except ApiError as error:
            return str(error)
        except Exception:
            # The watch must outlive whatever one probe meets.
            log.exception("the readiness probe failed")
            return "the probe itself failed; see the log"

    async def _ask_for_one_token(self) -> str | None:
        async with self._upstream.post(
            CHAT.path,
            self._probe_body,
            request_id=f"ready-{uuid.uuid4().hex}",
            accept="text/event-stream",
        ) as response:
            if response.status != 200:
                return f"the upstream answered with status {response.status}"
            seen = False
            pending = b""
            # To the end and not only to the token, so that the connection can be used again.
            while data := await read_some(response):
                lines, newline, pending = (pending[-_LONGEST_LINE_BYTES:] + data).rpartition(b"\n")
                if newline and not seen and shows_token(lines):
                    seen = True
                    self._last_token = time.monotonic()
            return None if seen else "the stream ended without a token"
