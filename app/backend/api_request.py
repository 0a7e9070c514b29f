"""Reading and checking the body of a request before any of it reaches the engine."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from backend.admission import Ask
from backend.apis import Api
from backend.errors import ApiError
from backend.field_rules import check_fields, prompts_in
from backend.settings import Settings


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request that may be sent on.

    `body` is written anew from what was read, so that nothing the checks did not see (a field
    named twice, say) can reach the engine. `hides_usage` says that the engine counts for us and
    not for the client.
    """

    body: bytes
    model: str
    stream: bool
    hides_usage: bool
    ask: Ask


class RequestParser:
    """Checks requests by one set of rules; made once."""

    def __init__(self, settings: Settings) -> None:
        self._models = frozenset(model.id for model in settings.models)
        self._extra = frozenset(settings.extra_fields)
        self._most_choices = settings.most_choices

    def parse(
        self,
        body: bytes,
        api: Api,
        *,
        models: Collection[str] | None = None,
        stream: bool | None = None,
    ) -> ApiRequest:
        """Check a body for `api`; `stream` overrules what it says of that.

        `models` are those that the key may use; None is all. Raises ApiError 400 for what is
        wrong, 403 for a model that the key may not use and 404 for one that there is not. What is
        only a matter of types is left to the engine, which knows them.
        """
        fields = _read_object(body)
        model = self._model(fields, models)
        if not _is_prompt(fields.get(api.prompt), api):
            raise ApiError(400, f"You must provide {api.prompt}.", param=api.prompt)
        for name in fields.keys() - api.fields - self._extra:
            if fields[name] is not None:
                raise ApiError(
                    400,
                    f"The parameter `{name[:100]}` is not taken here.",
                    param=name[:100],
                    code="unsupported_parameter",
                )
            del fields[name]
        check_fields(fields, self._most_choices)
        streams = self._stream(fields, api, stream)
        hides_usage = streams and api.has_stream_options and _ask_for_usage(fields)
        return ApiRequest(
            body=_written(fields),
            model=model,
            stream=streams,
            hides_usage=hides_usage,
            ask=Ask(prompt_bytes=len(body), most_tokens=_most_tokens(fields, api), stream=streams),
        )

    def _model(self, fields: dict[str, Any], allowed: Collection[str] | None) -> str:
        model = fields.get("model")
        if not isinstance(model, str) or not model:
            raise ApiError(400, "You must provide a model parameter, as a string.", param="model")
        if model not in self._models:
            raise unknown_model(model)
        if allowed is not None and model not in allowed:
            # Not 404, as of a model that does not exist: 403 is what OpenAI answers where a project
            # may not use a model, and it sends the reader to whoever made the key.
            raise ApiError(
                403,
                f"This key may not use the model `{model}`.",
                kind="permission_error",
                code="model_not_allowed",
                param="model",
            )
        return model

    def _stream(self, fields: dict[str, Any], api: Api, wanted: bool | None) -> bool:
        stream = fields.get("stream")
        # Not "true" or 1: the engine would take those for true, and we would not send heartbeats.
        if stream is not None and not isinstance(stream, bool):
            raise ApiError(400, "stream must be true or false.", param="stream")
        if wanted is not None:
            fields["stream"] = stream = wanted
        return bool(stream) and api.streams


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """Return the whole body; raise ApiError 413 above the limit, ClientDisconnect on a cut."""
    for name, value in scope["headers"]:
        # Said before the first byte is taken, so that Expect: 100-continue saves the upload.
        if name == b"content-length" and value.isdigit() and int(value) > limit_bytes:
            raise _too_large(limit_bytes)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def unknown_model(model: str) -> ApiError:
    """Make the error for a model that is not served here."""
    return ApiError(
        404,
        f"The model `{model[:100]}` does not exist or you do not have access to it.",
        code="model_not_found",
        param="model",
    )


def _read_object(body: bytes) -> dict[str, Any]:
    def no_number(word: str) -> NoReturn:
        # Python reads NaN and Infinity, which no JSON has.
        raise ValueError(word)

    try:
        # Decoded here because json.loads would also take UTF-16 and UTF-32, which the engine
        # may read in another way than we did.
        fields = json.loads(body.decode("utf-8"), parse_constant=no_number)
    except (ValueError, RecursionError):
        raise ApiError(400, "The request body is not valid JSON in UTF-8.") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "The request body must be a JSON object.")
    return fields


def _written(fields: dict[str, Any]) -> bytes:
    try:
        return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode("ascii")
    except ValueError:
        # 1e999 is JSON, and to Python infinity, which is none.
        raise ApiError(400, "The request body has a number that is too large.") from None


def _is_prompt(value: Any, api: Api) -> bool:
    return isinstance(value, list) if api.prompt == "messages" else isinstance(value, str | list)


def _ask_for_usage(fields: dict[str, Any]) -> bool:
    """Have the engine count; return whether the client had not asked for that."""
    options = fields.get("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise ApiError(400, "stream_options must be an object.", param="stream_options")
    if options.get("include_usage") is True:
        return False
    # Without the total the engine ignores running totals as well.
    fields["stream_options"] = {"include_usage": True}
    return True


def _most_tokens(fields: dict[str, Any], api: Api) -> int | None:
    each = fields.get("n")
    choices = (each if isinstance(each, int) and each > 0 else 1) * prompts_in(fields)
    for name in api.most_tokens:
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value * choices
    return None


def _too_large(limit_bytes: int) -> ApiError:
    return ApiError(
        413, f"The request body is larger than {limit_bytes} bytes.", code="request_too_large"
    )
