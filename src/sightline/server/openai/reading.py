"""A body as one of the requests in `fields`."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from sightline.server.errors import RequestError, continued
from sightline.server.openai.unsupported import check_unsupported

_R = TypeVar("_R", bound=BaseModel)

# Names that pydantic gives to the members of a union, which are no fields.
_MEMBERS = ("str", "bool", "list[str]", "list[int]", "list[list[int]]", "dict[str,any]")


def read_request(body: bytes, kind: type[_R]) -> _R:
    """Parse a body, whatever its content type says.

    Of a name that comes twice the last value counts. Nesting deeper than 200 is refused.

    Raises:
        RequestError: not JSON, or a field of the wrong type, or one that is refused; its `param` names the field.
    """
    try:
        if b"NaN" in body or b"Infinity" in body:
            # They are not JSON. Typed fields refuse them anyway, but not what stands in schemas and the like.
            from_json(body, allow_inf_nan=False)
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from error
    except ValueError as error:
        raise RequestError(f"the body: invalid JSON: {error}") from error
    check_unsupported(request.model_extra)
    return request


def _refusal(error: ValidationError) -> RequestError:
    # Of a union each member has its say; the one that came furthest into the value is what was meant.
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    first = faults[0]["loc"][:1]
    fault = max((one for one in faults if one["loc"][:1] == first), key=lambda one: len(_fields(one["loc"])))
    where = _path(_fields(fault["loc"]))
    return RequestError(f"{where or 'the body'}: {continued(fault['msg'])}", param=where or None)


def _fields(places: tuple[int | str, ...]) -> list[int | str]:
    return [place for place in places if place not in _MEMBERS]


def _path(places: list[int | str]) -> str:
    """["messages", 0] -> "messages[0]"."""
    path = ""
    for place in places:
        if isinstance(place, int):
            path += f"[{place}]"
        else:
            path += f".{place}" if path else place
    return path
