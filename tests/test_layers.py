"""What holds across the whole tree; the import direction itself is checked by import-linter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sightline"
FILES = sorted(path for path in SOURCE.rglob("*.py") if "hardware" not in path.relative_to(SOURCE).parts)


def dotted(node: ast.AST) -> str:
    return (
        f"{node.value.id}.{node.attr}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        else ""
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_hardware_tells_devices_apart(path: Path) -> None:
    uses = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if dotted(node) in ("torch.cuda", "torch.npu")
    ]
    assert uses == [], f"{path}: ask sightline.hardware.accelerator instead, lines {uses}"


def test_the_package_and_the_command_line_import_no_heavy_library() -> None:
    code = (
        "import sys, sightline, sightline.cli.app, sightline.progress, sightline.data.conversation\n"
        "heavy = {'torch', 'transformers', 'PIL', 'av', 'fastapi', 'matplotlib', 'peft', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
