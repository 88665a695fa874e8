"""One tiny model and one real server for all tests of the dialect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from sightline import LLM
from sightline.server.run import Address, serve_in_background


@pytest.fixture(scope="session")
def llm(tiny_folder: Path) -> LLM:
    return LLM(tiny_folder, dtype="fp32", device="cpu")


@pytest.fixture(scope="session")
def address(llm: LLM) -> Iterator[Address]:
    with serve_in_background(llm, served_model_name="tiny") as address:
        yield address


@pytest.fixture(scope="session")
def client(address: Address) -> openai.OpenAI:
    return openai.OpenAI(base_url=address.url, api_key="none", max_retries=0)
