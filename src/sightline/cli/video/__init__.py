"""`sightline video`: videos with Wan2.1, and what makes them fast. A file of its own for each command."""

from __future__ import annotations

import typer

from sightline.cli.video import compare, generate, search, tune

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Videos with Wan2.1, and what makes them fast.\n\nExample: sightline video generate --prompt TEXT -o cat.mp4",
)


@app.callback()
def _group() -> None:
    """A group of commands."""


app.command("generate", epilog=generate.EXAMPLE, cls=generate.Command)(generate.command)
app.command("search", epilog=search.EXAMPLE)(search.command)
app.command("compare", epilog=compare.EXAMPLE)(compare.command)
app.command("tune", epilog=tune.EXAMPLE)(tune.command)
