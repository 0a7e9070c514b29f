"""OpenAI's endpoints: what they take is checked here, what they answer is the engine's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from backend.api_request import unknown_model
from backend.apis import APIS, Api
from backend.exchange import exchange_of, key_of
from backend.express.handoffs import Offer
from backend.openapi import answers
from backend.services import NO_STORE, NoResponse, Services, body_of
from backend.settings import Model


def add_openai_routes(router: APIRouter, services: Services) -> None:
    """Add the endpoints of apis.py and the list of models."""
    models = {model.id: model for model in services.settings.models}

    @router.get("/v1/models", responses=answers({}))
    async def list_models(request: Request) -> JSONResponse:
        """List the models that the key may ask for."""
        key = key_of(request.scope)
        listed = [_entry(model) for model in models.values() if key.may_use(model.id)]
        return JSONResponse({"object": "list", "data": listed}, headers=NO_STORE)

    @router.get("/v1/models/{model_id:path}", responses=answers({}, 404))
    async def one_model(model_id: str, request: Request) -> JSONResponse:
        """Describe one model."""
        if model_id not in models or not key_of(request.scope).may_use(model_id):
            raise unknown_model(model_id)
        return JSONResponse(_entry(models[model_id]), headers=NO_STORE)

    for api in APIS:
        router.add_api_route(
            api.path,
            _endpoint(api, services),
            methods=["POST"],
            name=api.name,
            description=f"OpenAI's {api.path}; the fields that are taken are those listed.",
            response_class=Response,
            responses=answers({200: _answer(api)}, 400, 403, 404, 413, 500, 502, 503, 504),
            openapi_extra=_openapi(api, sorted(models)),
        )


def _endpoint(api: Api, services: Services) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        body = await body_of(request, services.settings)
        if body is None:
            return NoResponse()
        checked = services.parser.parse(body, api, models=key_of(request.scope).models)
        offer = Offer.of(request.scope)
        return await services.answer(exchange_of(request.scope), api, checked, offer)

    return endpoint


def _entry(model: Model) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
    }


def _answer(api: Api) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {}}
    if api.streams:
        content["text/event-stream"] = {}
    return {"description": "The engine's own answer, byte for byte.", "content": content}


def _openapi(api: Api, model_ids: list[str]) -> dict[str, Any]:
    """Describe the body: what this hop checks, and for the rest only the names."""
    prompt: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "array"}]}
    if api.prompt == "messages":
        prompt = {"type": "array", "items": {"type": "object"}}
    properties: dict[str, Any] = {name: {} for name in sorted(api.fields)}
    properties |= {"model": {"type": "string", "enum": model_ids}, api.prompt: prompt}
    if api.streams:
        properties["stream"] = {"type": ["boolean", "null"]}
    schema = {
        "type": "object",
        "required": ["model", api.prompt],
        "properties": properties,
        "additionalProperties": False,
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
