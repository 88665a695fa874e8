"""The pages: links lead somewhere, and the commands they show exist with the options they use."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sightline.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])


def shown_commands(page: Path) -> Iterator[list[str]]:
    """Every `sightline ...` line of the page's code blocks, in words, with continued lines joined."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if re.match(r"sightline [a-z]", line) and "|" not in line and "[" not in line:
                yield shlex.split(line, comments=True)


def options_of(command: Any) -> set[str]:
    return {spelling for part in command.params for spelling in (*part.opts, *part.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_shown_commands_exist(page: Path) -> None:
    for words in shown_commands(page):
        command = app.load(words[1])
        rest = words[2:]
        while rest and (child := getattr(command, "commands", {}).get(rest[0])) is not None:
            command, rest = child, rest[1:]
        used = {word.partition("=")[0].replace("_", "-") for word in rest if re.match(r"--?[a-z]", word)}
        unknown = used - options_of(command) - {"--help", "-h", "--debug", "--quiet"}
        assert unknown == set(), f"{' '.join(words)}: unknown {sorted(unknown)}"
        absent = [word for word in rest if word.startswith("examples/") and not (ROOT / word).exists()]
        assert absent == []
