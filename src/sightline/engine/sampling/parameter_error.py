"""What is wrong with a sampling parameter."""

from __future__ import annotations

from sightline.errors import UsageError


class ParameterError(UsageError):
    """A sampling parameter that is wrong. `name` is the field, for an HTTP error to point at; `fault` the rest."""

    def __init__(self, name: str, fault: str) -> None:
        super().__init__(f"{name} {fault}")
        self.name = name
        self.fault = fault
