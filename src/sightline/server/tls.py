"""A port's TLS, read and checked before anything that takes long."""

from __future__ import annotations

import ssl
from pathlib import Path

from sightline.errors import UsageError
from sightline.server.settings import TlsFiles


def context_of(files: TlsFiles) -> ssl.SSLContext | None:
    """What a port encrypts with; None for plain http.

    Raises:
        UsageError: a file is missing or not what it should be, the key is not the certificate's, or its password
            is missing or wrong; the text names the option.
    """
    if files.certfile is None or files.keyfile is None:
        return None
    for name in ("certfile", "keyfile", "ca_certs"):
        _check_readable(getattr(files, name), files.option(name))
    password = _password(files)
    asked = False

    def answer() -> bytes:
        nonlocal asked
        asked = True
        return password

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.certfile, files.keyfile, password=answer)
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(_mistake(files, error, asked=asked, given=bool(password))) from error
    if files.ca_certs is not None:
        try:
            context.load_verify_locations(files.ca_certs)
        except ssl.SSLError as error:
            option = files.option("ca_certs")
            raise UsageError(f"{option} {files.ca_certs} holds no certificate in PEM form") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _mistake(files: TlsFiles, error: Exception, *, asked: bool, given: bool) -> str:
    reason = getattr(error, "reason", None) or ""
    key, option = files.option("keyfile"), files.option("keyfile_password_file")
    if reason == "KEY_VALUES_MISMATCH":
        certificate = files.option("certfile")
        return f"{key} {files.keyfile} is not the key of {certificate} {files.certfile}"
    if asked:
        wrong = "the password of {} does not open it" if given else "{} is closed by a password"
        return f"{key} {wrong.format(files.keyfile)}; give a file with it by {option}"
    for name in ("certfile", "keyfile"):
        path = Path(getattr(files, name))
        if b"-----BEGIN " not in path.read_bytes():
            return f"{files.option(name)} {path} is not in PEM form (-----BEGIN ...)"
    return f"{files.option('certfile')} {files.certfile} and {key} {files.keyfile} cannot be used: {reason or error}"


def _check_readable(path: str | None, option: str) -> None:
    if path is None:
        return
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be read: {error.strerror or error}") from error


def _password(files: TlsFiles) -> bytes:
    if files.password_file is None:
        return b""
    _check_readable(files.password_file, files.option("keyfile_password_file"))
    return Path(files.password_file).read_bytes().split(b"\n", 1)[0].strip()
