"""MindIE's business port: which path is answered how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sightline.server.errors import RequestError
from sightline.server.mindie import infer, tgi, triton, vllm
from sightline.server.mindie.describe import (
    ANY,
    GENERATE,
    GENERATED,
    INFER_BODY,
    INFER_TOKEN_BODY,
    TEXTS,
    TGI_BODY,
    TOKENS,
    TRITON_BODY,
    TRITON_TEXT,
    described,
)
from sightline.server.mindie.errors import MindieRoute
from sightline.server.mindie.fields import Field, read_body, read_fields, schema_of
from sightline.server.mindie.info import model_config, model_metadata, server_metadata
from sightline.server.mindie.prompts import tokenise
from sightline.server.service import Service

_STREAM = (Field("stream", "flag"),)
_TOKENIZER = (Field("inputs", "text"), Field("do_decode", "flag"))


def router(service: Service, *, full_text: bool = False) -> APIRouter:
    """The inference routes; `full_text` is MindIE's fullTextEnabled."""
    routes = APIRouter(route_class=MindieRoute)

    @routes.post("/generate", **described(GENERATE, TEXTS, GENERATED, streams=True))
    async def generate(http: Request) -> Response:
        body = read_body(await service.body(http))
        if body.get("prompt") is not None:
            return await vllm.generate(service, http, body, full_text=full_text)
        if body.get("inputs") is not None:
            return await tgi.generate(service, http, body, stream=_streams(body))
        raise RequestError("the body has neither prompt nor inputs; give one of them", param="prompt")

    @routes.post("/generate_stream", **described(TGI_BODY, streams=True))
    async def generate_stream(http: Request) -> Response:
        return await tgi.generate(service, http, read_body(await service.body(http)), stream=True)

    @routes.post("/", **described(TGI_BODY, {"type": "array", "items": GENERATED}, streams=True))
    async def root(http: Request) -> Response:
        body = read_body(await service.body(http))
        return await tgi.generate(service, http, body, stream=_streams(body), listed=True)

    @routes.post("/infer", **described(INFER_BODY, GENERATED, streams=True))
    @routes.post("/infer_token", **described(INFER_TOKEN_BODY, GENERATED, streams=True))
    async def infer_(http: Request) -> Response:
        return await infer.infer(service, http, read_body(await service.body(http)))

    _add_models(routes, service)
    return routes


def _add_models(routes: APIRouter, service: Service) -> None:
    @routes.get("/v2", **described(None, ANY))
    async def metadata() -> dict[str, Any]:
        return server_metadata(service)

    @routes.get("/v2/models/{model}", **described(None, ANY))
    async def model(model: str) -> dict[str, Any]:
        return model_metadata(service, model)

    @routes.get("/v2/models/{model}/config", **described(None, ANY))
    async def config(model: str) -> dict[str, Any]:
        return model_config(service, model)

    @routes.post("/v2/models/{model}/generate", **described(TRITON_BODY, TRITON_TEXT))
    async def generate(http: Request, model: str) -> Response:
        body = read_body(await service.body(http))
        return await triton.generate(service, http, model, body, stream=False)

    @routes.post("/v2/models/{model}/generate_stream", **described(TRITON_BODY, streams=True))
    async def generate_stream(http: Request, model: str) -> Response:
        body = read_body(await service.body(http))
        return await triton.generate(service, http, model, body, stream=True)

    @routes.post("/v1/tokenizer", **described(schema_of(_TOKENIZER), TOKENS))
    async def tokenizer(http: Request) -> dict[str, Any]:
        values = read_fields(read_body(await service.body(http)), _TOKENIZER)
        text = values.get("inputs")
        if not text or len(text) > service.limits.max_prompt_chars:
            raise RequestError(
                f"inputs must be a text of 1 to {service.limits.max_prompt_chars:,} characters",
                param="inputs",
            )
        return await service.threads.run(lambda: _tokens(service, text, values.get("do_decode", True)))


def _tokens(service: Service, text: str, decode: bool) -> dict[str, Any]:
    ids = tokenise(service, text)
    words = [service.llm.get_tokenizer().decode([token]) for token in ids] if decode else []
    return {"token_number": len(ids), "tokens": words}


def _streams(body: Mapping[str, Any]) -> bool:
    return bool(read_fields(body, _STREAM).get("stream", False))
