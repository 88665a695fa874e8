"""serve.yaml: one `option: value` a line, with the options' names in either spelling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sightline.errors import UsageError
from sightline.server.config.explain import nearest
from sightline.server.settings import all_options, other_names


def read_yaml(text: str, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a file by option, and how errors call each: its file, line and key.

    Raises:
        UsageError: it is no YAML of that form, a key is no option, or stands twice.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return {}, {}
        _refuse_duplicates(root, path)
        loaded = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(_mistake(error, path)) from error
    if not isinstance(root, yaml.MappingNode) or not isinstance(loaded, dict):
        raise UsageError(f"{path} must hold `option: value` lines, such as `model: FOLDER`")
    known = _known()
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for node, _ in root.value:
        place = f"{path}:{node.start_mark.line + 1}: {node.value}"
        name = known.get(str(node.value).replace("-", "_"))
        if name is None:
            raise UsageError(f"{place} is not an option{nearest(str(node.value))}")
        if name in values:
            raise UsageError(f"{place} says again what {places[name]} says")
        key = next(key for key in loaded if str(key) == node.value)
        values[name], places[name] = loaded[key], place
    return values, places


def _mistake(error: Exception, path: Path) -> str:
    """Where and what, without the line itself: it may be that of a key."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return f"{path} is not valid YAML: {' '.join(str(error).split())}"
    return f"{path}:{mark.line + 1}:{mark.column + 1} is not valid YAML: {problem}"


def _known() -> dict[str, str]:
    """Options by each of their names."""
    return {known: name for _, name, field in all_options() for known in (name, *other_names(field))}


def _refuse_duplicates(root: yaml.Node, path: Path) -> None:
    """YAML forbids them, and PyYAML takes the last one in silence."""
    for mapping in _mappings(root):
        seen: dict[str, int] = {}
        for key, _ in mapping.value:
            line = key.start_mark.line + 1
            if str(key.value) in seen:
                raise UsageError(f"{path}:{line}: {key.value} stands in line {seen[str(key.value)]} already")
            seen[str(key.value)] = line


def _mappings(node: yaml.Node) -> Iterator[yaml.MappingNode]:
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _mappings(value)
