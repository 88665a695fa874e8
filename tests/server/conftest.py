"""One tiny engine for the tests of the server itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline import LLM


@pytest.fixture(scope="session")
def served_llm(tiny_folder: Path) -> LLM:
    return LLM(tiny_folder, dtype="fp32", device="cpu", max_num_seqs=4)
