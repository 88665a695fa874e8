"""The arithmetic of the Triton decode kernel, in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_kernel_agrees_with_the_plain_form() -> None:
    pytest.importorskip("triton")
    tests = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, str(tests / "interpreted_decode.py")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "agreed\n", result.stderr[-3000:]
