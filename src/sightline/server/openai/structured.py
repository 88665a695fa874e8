"""What a request says about its answer's form, in any of the spellings in use, as the engine's setting.

Where tools come into it (`tool_choice`, or tools beside a form), the form is a grammar that has calls in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sightline.engine.sampling.params import ParameterError
from sightline.engine.sampling.structured.params import StructuredOutputsParams
from sightline.server.errors import RequestError
from sightline.server.openai.call_grammar import calls_grammar
from sightline.server.openai.fields import Request, ResponseFormat, StructuredOutputs
from sightline.server.openai.tools import Toolbox, check_schema

_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
_FORMATS = ("text", "json_object", "json_schema")


@dataclass(frozen=True)
class Form:
    """The form of an answer. `field` is where the client wrote it, for errors to point at."""

    params: StructuredOutputsParams
    field: str

    def renamed(self, error: RequestError) -> RequestError:
        """The error with the client's name of the field."""
        told = error.body["error"]
        name = told["param"]
        if not isinstance(name, str) or not name.startswith("structured_outputs"):
            return error
        message = str(told["message"]).replace(name, self.field, 1)
        return RequestError(message, status=error.status, param=self.field, code=told["code"])


def form_of(request: Request, toolbox: Toolbox | None = None, *, tags: bool = False) -> Form | None:
    """The form that a request asks for, None where its answer is free.

    Args:
        tags: whether the tags of calls are tokens.

    Raises:
        RequestError: it asks for several, for one that is not known, or for one that its tools contradict.
    """
    forms = [form for form in (_format(request.response_format), *_vllm(request)) if form is not None]
    if len(forms) > 1:
        raise RequestError(
            f"{forms[0].field} and {forms[1].field} both say how the answer looks; keep one of them",
            param=forms[1].field,
        )
    form = forms[0] if forms else None
    if not toolbox or not (toolbox.held or form):
        return form
    if form is not None and not toolbox.required and form.params.kind not in ("json", "json_object"):
        raise RequestError(
            f"{form.field} leaves no room for a call of tools; leave one of them out, or use a JSON schema",
            param=form.field,
        )
    free = None if toolbox.required or form is None else form.params
    return _made("tools", grammar=calls_grammar(toolbox, tags, free))


def _format(given: ResponseFormat | None) -> Form | None:
    if given is None or given.type == "text":
        return None
    if given.type not in _FORMATS:
        raise RequestError(
            f"response_format.type must be one of {', '.join(_FORMATS)}", param="response_format.type"
        )
    if given.type == "json_object":
        return _made("response_format", json_object=True)
    if given.json_schema is None:
        raise RequestError(
            "response_format.json_schema is missing; give a name and a schema",
            param="response_format.json_schema",
        )
    field = "response_format.json_schema.schema"
    schema = given.json_schema.schema_
    if schema is None:
        return _made(field, json_object=True)
    check_schema(schema, field)
    return _made(field, json=schema)


def _vllm(request: Request) -> list[Form]:
    forms = []
    given = request.structured_outputs
    if given is not None:
        forms.append(_structured(given))
    for name in _GUIDED:
        value = getattr(request, name)
        if value is not None:
            _check(value, name)
            forms.append(_made(name, **{name.removeprefix("guided_"): value}))
    return forms


def _structured(given: StructuredOutputs) -> Form:
    if given.structural_tag is not None:
        raise RequestError(
            "structured_outputs.structural_tag is not supported by this server (use a grammar); leave it out",
            param="structured_outputs.structural_tag",
        )
    kinds = {
        "json": given.json_,
        "json_object": given.json_object or None,
        "regex": given.regex,
        "choice": given.choice,
        "grammar": given.grammar,
    }
    values = {name: value for name, value in kinds.items() if value is not None}
    field = f"structured_outputs.{next(iter(values))}" if len(values) == 1 else "structured_outputs"
    _check(given.json_, "structured_outputs.json")
    if given.disable_any_whitespace is not None:
        values["disable_any_whitespace"] = given.disable_any_whitespace
    if given.whitespace_pattern is not None:
        values["whitespace_pattern"] = given.whitespace_pattern
    return _made(field, **values)


def _check(schema: Any, field: str) -> None:
    if isinstance(schema, dict):
        check_schema(schema, field)


def _made(field: str, **values: Any) -> Form:
    try:
        return Form(StructuredOutputsParams(**values), field)
    except ParameterError as error:
        raise RequestError(str(error).replace(error.name, field, 1), param=field) from error
