"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from sightline.server.errors import RequestError
from sightline.server.openai.describe import DETOKENIZE_ANSWER, TOKENIZE_ANSWER, described
from sightline.server.openai.fields import DetokenizeRequest, Templated, TokenizeRequest
from sightline.server.openai.messages import check_characters
from sightline.server.openai.reading import read_request
from sightline.server.openai.template import Template
from sightline.server.openai.tools import read_tools
from sightline.server.service import Service


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    template = Template(service)

    @routes.post("/tokenize", **described(TokenizeRequest, TOKENIZE_ANSWER))
    async def tokenize(http: Request) -> dict[str, Any]:
        request = read_request(await service.body(http), TokenizeRequest)
        return await service.threads.run(lambda: _tokens(service, template, request))

    @routes.post("/detokenize", **described(DetokenizeRequest, DETOKENIZE_ANSWER))
    async def detokenize(http: Request) -> dict[str, Any]:
        request = read_request(await service.body(http), DetokenizeRequest)
        return await service.threads.run(lambda: _text(service, request))

    return routes


def _tokens(service: Service, template: Template, request: TokenizeRequest) -> dict[str, Any]:
    """A prompt's tokens; an image or a video is one token, for nothing is opened."""
    service.names.find(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise RequestError("give either a prompt or messages", param="prompt")
    tokenizer, special = service.llm.get_tokenizer(), request.add_special_tokens
    if request.messages is None:
        text = request.prompt or ""
        check_characters(len(text), service.limits, "prompt")
        special = True if special is None else special
    else:
        given = request.model_dump(include=set(Templated.model_fields), exclude_none=True)
        templated = Templated.model_validate(given)
        asked = template.ask(templated, read_tools(request.tools, None, None))
        text = template.render(templated, asked.conversation)
    ids = tokenizer(text, add_special_tokens=bool(special))["input_ids"]
    return {
        "count": len(ids),
        "max_model_len": service.llm.max_model_len,
        "tokens": ids,
        "token_strs": tokenizer.convert_ids_to_tokens(ids) if request.return_token_strs else None,
    }


def _text(service: Service, request: DetokenizeRequest) -> dict[str, Any]:
    service.names.find(request.model)
    tokenizer, longest = service.llm.get_tokenizer(), service.limits.max_prompt_chars
    if len(request.tokens) > longest:
        raise RequestError(f"tokens may hold {longest:,} ids; send fewer", param="tokens")
    size = len(tokenizer)
    wrong = next((token for token in request.tokens if not 0 <= token < size), None)
    if wrong is not None:
        raise RequestError(f"tokens must lie between 0 and {size - 1}, not {wrong}", param="tokens")
    return {"prompt": tokenizer.decode(request.tokens, clean_up_tokenization_spaces=False)}
