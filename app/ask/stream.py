"""A chat completion over the standard library, read by read, so that what arrives when is seen."""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

READ_BYTES = 65536


class AskError(Exception):
    """The service could not be asked, in one line that a person can act on. Exit code 2."""

    exit_code = 2


class BrokenStreamError(AskError):
    """The answer began and broke off. Exit code 1."""

    exit_code = 1


@dataclass
class Tally:
    """What one streamed answer looked like on the wire; times in seconds since the request."""

    first_token_seconds: float = 0.0
    last_token_seconds: float = 0.0
    reads: int = 0
    events: int = 0
    tokens: int = 0
    ended: bool = False
    gaps: list[float] = field(default_factory=list)

    @property
    def events_per_read(self) -> float:
        """Events that arrived together, on average; 1.0 is a stream."""
        return self.events / self.reads if self.reads else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Pace after the first token."""
        span = self.last_token_seconds - self.first_token_seconds
        return (self.tokens - 1) / span if span > 0 else 0.0


def connect(url: str, ca: str | None, timeout_seconds: float) -> http.client.HTTPConnection:
    """Return a connection for `url`; `ca` is a certificate file to trust. Raises AskError."""
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise AskError(f"{url} is no address: write https://host or https://host:port")
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.hostname, port, timeout=timeout_seconds)
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise AskError(f"the certificate file {ca} cannot be read: {error}") from None
    return http.client.HTTPSConnection(
        parts.hostname, port, timeout=timeout_seconds, context=context
    )


def call(
    connection: http.client.HTTPConnection, method: str, path: str, key: str, body: Any = None
) -> http.client.HTTPResponse:
    """Send one request and return the answer. Raises AskError when it is not 200."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
    except ssl.SSLCertVerificationError as error:
        raise AskError(
            f"the certificate is not trusted ({error.verify_message}): give its file with --ca"
        ) from None
    except http.client.HTTPException:
        raise AskError(f"{connection.host} answers, but does not speak HTTP") from None
    except OSError as error:
        raise AskError(f"{connection.host} cannot be reached: {error}") from None
    if answer.status != 200:
        said = answer.read(4096).decode(errors="replace")
        try:
            said = json.loads(said)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = said.strip().splitlines()[0] if said.strip() else answer.reason
        raise AskError(f"{path} answered {answer.status}: {said}")
    return answer


def first_model(connection: http.client.HTTPConnection, key: str, base: str = "") -> str:
    """Return the first model that the service offers. Raises AskError when there is none."""
    answer = call(connection, "GET", f"{base}/v1/models", key)
    try:
        models = json.loads(answer.read())["data"]
        return str(models[0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise AskError("the service names no model") from None


def _read(answer: http.client.HTTPResponse) -> bytes:
    """Return what has arrived, nothing at the end. Raises BrokenStreamError."""
    try:
        return answer.read1(READ_BYTES)
    except TimeoutError:
        raise BrokenStreamError("the stream fell silent") from None
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise BrokenStreamError(f"the stream was cut: {type(error).__name__}") from None


def deltas(answer: http.client.HTTPResponse, began: float, tally: Tally) -> Iterator[str]:
    """Yield the answer's text as it comes, keeping the tally.

    Raises BrokenStreamError on an error event.
    """
    rest = b""
    while block := _read(answer):
        now = time.monotonic() - began
        *events, rest = (rest + block).split(b"\n\n")
        counted = 0
        for event in events:
            if not event.startswith(b"data: "):
                continue  # a heartbeat
            data = event[6:]
            if data == b"[DONE]":
                tally.ended = True
                continue
            try:
                told = json.loads(data)
            except ValueError:
                raise BrokenStreamError("the stream held an event that is no JSON") from None
            if "error" in told:
                raise BrokenStreamError(
                    f"the stream ended with an error: {told['error'].get('message')}"
                )
            choices = told.get("choices") or []
            text = choices[0].get("delta", {}).get("content") if choices else None
            if text:
                counted += 1
                yield text
        if counted:
            if tally.tokens == 0:
                tally.first_token_seconds = now
            else:
                tally.gaps.append(now - tally.last_token_seconds)
            tally.reads += 1
            tally.events += counted
            tally.tokens += counted
            tally.last_token_seconds = now


def chat(
    connection: http.client.HTTPConnection, key: str, request: dict[str, Any], base: str = ""
) -> tuple[Iterator[str], Tally]:
    """Start a streamed chat completion; returns the text's pieces and the tally they fill."""
    tally = Tally()
    began = time.monotonic()
    path = f"{base}/v1/chat/completions"
    answer = call(connection, "POST", path, key, {**request, "stream": True})
    return deltas(answer, began, tally), tally
