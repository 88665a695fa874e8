"""A client as a user writes it: the OpenAI SDK, a question and a picture."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.demo.words import printable
from sightline.errors import SightlineError

if TYPE_CHECKING:
    from sightline.server.run import Address


def ask(address: Address, picture: Path, question: str, *, max_tokens: int) -> str:
    """The answer of a running server.

    Raises:
        SightlineError: the server refuses or does not answer.
    """
    import openai

    # Without the environment's proxies: the server is on this machine.
    client = openai.OpenAI(
        base_url=address.url,
        api_key="none",
        max_retries=0,
        timeout=300,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )
    try:
        with client:
            reply = client.chat.completions.create(
                model=address.model,
                temperature=0,
                max_tokens=max_tokens,
                messages=[
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": data_url(picture)}},
                            {"type": "text", "text": question},
                        ],
                    }
                ],
            )
    except openai.OpenAIError as error:
        reason = " ".join(str(error).split())[:300]
        raise SightlineError(f"the server at {address.url} did not answer: {reason}") from error
    return printable(reply.choices[0].message.content or "")


def data_url(path: Path) -> str:
    """A file as a data: URL."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
