"""The command line: finds the command, runs it, and turns every failure into one line and an exit code.

A command's module is imported only when the command is called, so `sightline --help` needs neither torch
nor Pillow. A module offers `command`, a function with typer annotations, or `app`, a typer group.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup

import sightline
from sightline import progress
from sightline.errors import SightlineError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


@dataclass(frozen=True)
class Entry:
    """A command as `sightline --help` lists it; its module is sightline.cli.<name>."""

    summary: str
    example: str


ENTRIES = {
    "demo": Entry("The whole journey on a small built-in model, in minutes.", "sightline demo"),
    "data": Entry(
        "Convert datasets to Sightline's form and check them.",
        "sightline data convert annotations.json -o train.jsonl",
    ),
    "train": Entry(
        "Fine-tune a model as a YAML file says.",
        "sightline train examples/lora.yaml model=MODEL data=train.jsonl",
    ),
    "merge": Entry(
        "Fold a LoRA adapter into its base model.",
        "sightline merge --model BASE --adapter runs/lora -o merged",
    ),
    "convert": Entry(
        "Convert weights between Hugging Face and MindSpeed-MM.",
        "sightline convert hf-to-mm --hf-dir MODEL -o mm --pp-llm 12,16 --pp-vit 32,0",
    ),
    "inspect": Entry("Say what is in a folder of weights.", "sightline inspect MODEL"),
    "diff": Entry("Compare the weights of two models.", "sightline diff base merged"),
    "quantize": Entry(
        "Write a copy of a model in 8 or 4 bit.",
        "sightline quantize --model MODEL -o quantized --quantization int8",
    ),
    "infer": Entry(
        "Answer one prompt, a dataset or a folder of images.",
        'sightline infer --model MODEL --image cat.jpg --prompt "What is this?"',
    ),
    "serve": Entry("Serve a model over HTTP with OpenAI's API.", "sightline serve --model MODEL --port 8000"),
    "bench": Entry(
        "Measure a server under load.",
        "sightline bench serve --base-url http://127.0.0.1:8000 --max-concurrency 4",
    ),
    "video": Entry(
        "Generate videos with Wan2.1, and make that fast.",
        'sightline video generate --prompt "a three moving left" -o three.mp4',
    ),
}

# Libraries that an extra of the package brings, by the name that Python imports.
_EXTRAS = {
    "easy_vqa": "demo",
    "gguf": "demo",
    "openai": "demo",
    "diffusers": "video",
    "tensorboard": "tensorboard",
}


class LazyGroup(TyperGroup):
    """Lists the commands by their summaries and imports one only when it is to run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in self.commands:
            self.commands[args[0]] = load(args[0])
        return super().resolve_command(ctx, args)


def load(name: str) -> Any:
    """Import the module of a command and build it.

    Raises:
        SightlineError: a library that it needs is not installed.
    """
    try:
        module = importlib.import_module(f"sightline.cli.{name}")
    except ModuleNotFoundError as error:
        raise SightlineError(_missing_library(error.name or str(error))) from error
    group = getattr(module, "app", None)
    if group is None:
        group = typer.Typer(add_completion=False)
        group.command(name=name)(module.command)
    command = typer.main.get_command(group)
    command.name = name
    entry = ENTRIES[name]
    if not command.help:
        command.help = entry.summary
    if f"sightline {name} " not in f"{command.help} {command.epilog or ''} ":
        command.epilog = f"Example:  {entry.example}"
    _keep_brackets(command)
    return command


def build() -> Any:
    """The root command with a stub for every command whose module exists."""
    app = typer.Typer(
        cls=LazyGroup, add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}
    )
    app.callback(invoke_without_command=True, epilog="Example:  sightline demo")(_root)
    for name, entry in ENTRIES.items():
        if importlib.util.find_spec(f"sightline.cli.{name}") is not None:
            app.command(name=name, help=entry.summary)(_stub)
    return typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process: 0 ok, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments, switches = take_switches(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in switches or _is_set("SIGHTLINE_DEBUG")
    progress.set_quiet("--quiet" in switches or _is_set("SIGHTLINE_QUIET"))
    # torch would import an installed torch_npu by itself and fail with a page of text where its libraries
    # are missing; hardware.accelerator imports it and says in one sentence what to do.
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    # Checkpoints are folders here; without a network the libraries would wait for a hub they need not ask.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        code = build().main(arguments, prog_name="sightline", standalone_mode=False)
        if sys.stdout is not None:  # it was closed before the start
            sys.stdout.flush()
    except BrokenPipeError:
        code = _stop_writing()
    except BaseException as error:
        code = explain(error, debug)
    if code == INTERRUPTED:
        _say("interrupted", style="yellow")
    sys.exit(code if isinstance(code, int) else 0)


def take_switches(arguments: list[str]) -> tuple[list[str], set[str]]:
    """Take `--debug` and `--quiet` out from wherever they stand, and spell options with hyphens.

    Users of other tools type `--max_batch_size`; after a bare `--`, and behind `=`, nothing is changed.
    """
    kept: list[str] = []
    switches: set[str] = set()
    for position, argument in enumerate(arguments):
        if argument == "--":
            return kept + arguments[position:], switches
        if argument in ("--debug", "--quiet"):
            switches.add(argument)
            continue
        name, equals, value = argument.partition("=")
        if re.fullmatch(r"--[A-Za-z][\w-]*", name):
            argument = name.replace("_", "-") + equals + value
        kept.append(argument)
    return kept, switches


def explain(error: BaseException, debug: bool) -> int:
    """Say on stderr, in one red line, what went wrong, and under `debug` where; give the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return INTERRUPTED
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error)
        return 2
    if debug:
        traceback.print_exception(type(error), error, error.__traceback__)
    if isinstance(error, SightlineError):
        code, text = error.exit_code, str(error)
    elif hasattr(error, "format_message"):  # typer's own: an unknown option, a missing argument
        code, text = getattr(error, "exit_code", 2), _usage_text(error)
    else:
        code, text = 1, _unexpected_text(error, debug)
    line, details = _split(text)
    _say(f"error: {line}", style="red")
    for detail in details:
        _say(detail, style="")
    return code


def _root(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
    debug: bool = typer.Option(False, "--debug", help="Show where an error arose. Also SIGHTLINE_DEBUG=1."),
    quiet: bool = typer.Option(False, "--quiet", help="Show no progress. Also SIGHTLINE_QUIET=1."),
) -> None:
    """Fine-tune, merge, run and serve Qwen-VL models on Ascend NPU, CUDA and CPU.

    `sightline COMMAND --help` explains a command with an example.
    """
    if version:
        typer.echo(f"sightline {sightline.__version__}")
    elif ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def _keep_brackets(command: Any) -> None:
    """Let help texts say [key=value ...]: rich would take it for markup and print nothing."""
    from rich.markup import escape

    for part in (command, *command.params):
        if getattr(part, "help", None):
            part.help = escape(part.help)
    for child in getattr(command, "commands", {}).values():
        _keep_brackets(child)


def _stub() -> None:
    """Stands for a command until it is loaded."""


def _split(text: str) -> tuple[str, list[str]]:
    """The sentence in one line, and the indented lines of a list that an error of ours may bring below it."""
    lines = text.splitlines()
    details = [line for line in lines if line.startswith("  ")]
    return " ".join(word for line in lines if not line.startswith("  ") for word in line.split()), details


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


def _usage_text(error: Any) -> str:
    message = error.format_message().strip().removesuffix(".")
    context = getattr(error, "ctx", None)
    return f"{message}; see `{context.command_path} --help`" if context is not None else message


def _unexpected_text(error: BaseException, debug: bool) -> str:
    kind, detail = type(error).__name__, " ".join(str(error).split())[:400]
    if isinstance(error, ModuleNotFoundError):
        return _missing_library(error.name or detail)
    # By their words too: CPUs, NPUs and safetensors raise plain errors of many kinds.
    no_memory = kind == "OutOfMemoryError" or re.search("out of memory|can't allocate memory", detail, re.I)
    if isinstance(error, MemoryError) or no_memory:
        return f"out of memory; lower the batch size, max_pixels or the length ({detail or kind})"
    if "No space left on device" in detail:
        return f"the disk is full; free some room and run it again ({detail})"
    again = "" if debug else "; run again with --debug to see where"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}{again}"
    return f"{kind}: {detail}; this is a bug in Sightline, please report it{again}"


def _missing_library(name: str) -> str:
    library = name.partition(".")[0]
    if library == "sightline":
        return f"{name} is missing from this installation of Sightline; install it again"
    wanted = f'"sightline[{_EXTRAS[library]}]"' if library in _EXTRAS else library
    return f"the library {library} is not installed; run: pip install {wanted}"


def _say(text: str, style: str) -> None:
    from rich.console import Console
    from rich.text import Text

    with contextlib.suppress(BrokenPipeError):
        Console(stderr=True, highlight=False).print(Text(text, style=style), soft_wrap=True)


def _stop_writing() -> int:
    # The reader is gone (`| head`). Python would complain when it flushes stdout at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


if __name__ == "__main__":
    main()
