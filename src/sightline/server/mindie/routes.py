"""MindIE's business port: which path is answered how."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sightline.server.errors import RequestError
from sightline.server.mindie import infer, tgi, triton, vllm
from sightline.server.mindie.errors import MindieRoute
from sightline.server.mindie.fields import INFER, TGI, TRITON, VLLM, Field, read_body, read_fields, schema_of
from sightline.server.mindie.info import model_config, model_metadata, server_metadata
from sightline.server.mindie.prompts import PART_SCHEMA, tokenise
from sightline.server.service import Service

_STREAM = (Field("stream", "flag"),)
_TOKENIZER = (Field("inputs", "text"), Field("do_decode", "flag"))


def router(service: Service, *, full_text: bool = False) -> APIRouter:
    """The inference routes; `full_text` is MindIE's fullTextEnabled."""
    routes = APIRouter(route_class=MindieRoute)

    @routes.post("/generate", openapi_extra=_body({**_asks("prompt", VLLM), **_asks("inputs", TGI)}))
    async def generate(http: Request) -> Response:
        body = read_body(await service.body(http))
        if body.get("prompt") is not None:
            return await vllm.generate(service, http, body, full_text=full_text)
        if body.get("inputs") is not None:
            return await tgi.generate(service, http, body, stream=_streams(body))
        raise RequestError("the body has neither prompt nor inputs; give one of them", param="prompt")

    @routes.post("/generate_stream", openapi_extra=_body(_asks("inputs", TGI)))
    async def generate_stream(http: Request) -> Response:
        return await tgi.generate(service, http, read_body(await service.body(http)), stream=True)

    @routes.post("/", openapi_extra=_body(_asks("inputs", TGI)))
    async def root(http: Request) -> Response:
        body = read_body(await service.body(http))
        return await tgi.generate(service, http, body, stream=_streams(body), listed=True)

    @routes.post("/infer", openapi_extra=_body(_asks("inputs", INFER)))
    @routes.post("/infer_token", openapi_extra=_body(_asks("input_id", INFER)))
    async def infer_(http: Request) -> Response:
        return await infer.infer(service, http, read_body(await service.body(http)))

    _add_models(routes, service)
    return routes


def _add_models(routes: APIRouter, service: Service) -> None:
    @routes.get("/v2")
    async def metadata() -> dict[str, Any]:
        return server_metadata(service)

    @routes.get("/v2/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        return model_metadata(service, model)

    @routes.get("/v2/models/{model}/config")
    async def config(model: str) -> dict[str, Any]:
        return model_config(service, model)

    @routes.post("/v2/models/{model}/generate", openapi_extra=_body(_asks("text_input", TRITON)))
    async def generate(http: Request, model: str) -> Response:
        body = read_body(await service.body(http))
        return await triton.generate(service, http, model, body, stream=False)

    @routes.post("/v2/models/{model}/generate_stream", openapi_extra=_body(_asks("text_input", TRITON)))
    async def generate_stream(http: Request, model: str) -> Response:
        body = read_body(await service.body(http))
        return await triton.generate(service, http, model, body, stream=True)

    @routes.post("/v1/tokenizer", openapi_extra=_body(schema_of(_TOKENIZER)["properties"]))
    async def tokenizer(http: Request) -> dict[str, Any]:
        values = read_fields(read_body(await service.body(http)), _TOKENIZER)
        text = values.get("inputs")
        if not text or len(text) > service.limits.max_prompt_chars:
            raise RequestError(
                f"inputs must be a text of 1 to {service.limits.max_prompt_chars:,} characters",
                param="inputs",
            )
        return await asyncio.to_thread(_tokens, service, text, values.get("do_decode", True))


def _tokens(service: Service, text: str, decode: bool) -> dict[str, Any]:
    ids = tokenise(service, text)
    words = [service.llm.get_tokenizer().decode([token]) for token in ids] if decode else []
    return {"token_number": len(ids), "tokens": words}


def _streams(body: Mapping[str, Any]) -> bool:
    return bool(read_fields(body, _STREAM).get("stream", False))


def _asks(prompt: str, table: Iterable[Field]) -> dict[str, Any]:
    """The properties of a body with a prompt and, unless they stand beside it, its parameters."""
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    properties = {prompt: ids if prompt == "input_id" else PART_SCHEMA, "stream": {"type": "boolean"}}
    if prompt == "prompt":
        return {**properties, **schema_of(table)["properties"]}
    return {**properties, "parameters": schema_of(table)}


def _body(properties: Mapping[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": dict(properties)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
