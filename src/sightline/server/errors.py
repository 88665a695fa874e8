"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

RETRY_AFTER = "1"  # seconds


class RequestError(Exception):
    """A request that cannot be served. `param` names the field that is wrong."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, status=status, param=param, code=code)

    def response(self) -> JSONResponse:
        # There may be room, or another server in this one's place, a moment later.
        headers = {"retry-after": RETRY_AFTER} if self.status == 503 else None
        return JSONResponse(self.body, status_code=self.status, headers=headers)


def error_body(
    message: str, *, status: int = 400, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def continued(sentence: str) -> str:
    """A sentence of somebody else's to stand behind a colon: names in it keep their letters."""
    return sentence[:1].lower() + sentence[1:]
