"""The errors a user can cause, each one sentence: what, where, what to change."""

from __future__ import annotations


class SightlineError(Exception):
    """A failure that the user can mend. The command line prints its text in one red line and exits with 1."""

    exit_code = 1


class UsageError(SightlineError):
    """A command, option or configuration that cannot mean anything. The command line exits with 2."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of what a library says, to be part of a sentence of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
