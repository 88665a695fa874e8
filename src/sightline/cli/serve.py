"""sightline serve: parse and serve. Its options are made from the fields of `ServeSettings`."""

from __future__ import annotations

import inspect
import os
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer

from sightline.server.config.explain import default_of, range_of
from sightline.server.config.printed import as_yaml
from sightline.server.config.sources import load_settings
from sightline.server.settings import all_options, is_size, other_names

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from sightline.server.run import Address

_CONFIG = typer.Option(
    "--config",
    help="serve.yaml with these options as keys, or MindIE's config.json. Options given here win over it.",
)
_ALSO = "__also__"
_PRINT = typer.Option(
    "--print-config", help="Print the settings as a serve.yaml with explanations, and stop."
)


def command(config: Path | None = None, print_config: bool = False, **options: Any) -> None:
    """Serve a model over HTTP with OpenAI's API, until Ctrl-C.

    Example:  sightline serve --model MODEL --port 8000
    """
    given = {_real(name): value for name, value in options.items() if value is not None and value != []}
    loaded = load_settings(given, config)
    if print_config:
        typer.echo(as_yaml(loaded.settings))
        return
    from sightline.server.logs import set_up_logs
    from sightline.server.run import serve
    from sightline.server.security import warnings_about

    set_up_logs(loaded.settings)
    for line in [*loaded.notes, *warnings_about(loaded.settings)]:
        typer.echo(line, err=True)
    serve(loaded.settings, on_ready=_say_ready)


def _say_ready(addresses: dict[str, Address]) -> None:
    api = addresses[""]
    others = [f"{prefix.rstrip('_')} at {address.root}" for prefix, address in addresses.items() if prefix]
    try:
        typer.echo(f"ready: {api.model} at {', '.join([api.url, *others])} (Ctrl-C stops)")
    except OSError:  # nobody reads it any more, or the disk is full; what waits to be written goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parameters() -> list[inspect.Parameter]:
    """The command's parameters: None or [] where an option is not given, so that other sources are asked."""
    made = [_parameter("config", Annotated[Path | None, _CONFIG], None)]
    for group, name, field in all_options():
        kind, default = _kind(field)
        option = _option(name, field, help=_help(name, field), rich_help_panel=group)
        made.append(_parameter(name, Annotated[kind, option], default))
        # Other tools' names work, and --help does not grow by them.
        for other in other_names(field):
            option = _option(other, field, hidden=True)
            made.append(_parameter(f"{name}{_ALSO}{other}", Annotated[kind, option], default))
    return [*made, _parameter("print_config", Annotated[bool, _PRINT], False)]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _real(name: str) -> str:
    """The option of a parameter."""
    return name.partition(_ALSO)[0]


def _option(name: str, field: FieldInfo, **shown: Any) -> Any:
    word = name.replace("_", "-")
    switch = _base(field.annotation) is bool
    return typer.Option(f"--{word}/--no-{word}" if switch else f"--{word}", show_default=False, **shown)


def _help(name: str, field: FieldInfo) -> str:
    """What the option means, its range and its default."""
    default = default_of(name)
    hints = [range_of(name), default and f"default {default}"]
    told = "; ".join(hint for hint in hints if hint)
    return f"{field.description} [{told}]" if told else str(field.description)


def _kind(field: FieldInfo) -> tuple[Any, Any]:
    """What typer reads the option as, and its value where it is not given. Ranges are the settings' own matter."""
    base = _base(field.annotation)
    if base is list:
        return list[str], []
    # A size is a number that is written as a text.
    plain = base in (bool, int, float) and not is_size(field)
    return (base if plain else str) | None, None


def _base(annotation: Any) -> Any:
    """The plain type under Annotated, Optional and Literal."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _base(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return _base(next(part for part in get_args(annotation) if part is not type(None)))
    return origin or annotation


command.__signature__ = inspect.Signature(_parameters())  # type: ignore[attr-defined]
command.__annotations__ = {parameter.name: parameter.annotation for parameter in _parameters()}
