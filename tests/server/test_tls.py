"""https with certificates made by openssl, and what is wrong with those that cannot be used."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from sightline import LLM
from sightline.errors import UsageError
from sightline.server.run import serve_in_background
from sightline.server.settings import ServeSettings
from sightline.server.tls import context_of

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    for name in ("own", "other"):
        subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key")
        openssl(folder, "req", "-x509", *key, "-out", f"{name}.pem", "-days", "2", *subject)
    openssl(folder, "ec", "-in", "own.key", "-aes128", "-passout", "pass:opensesame", "-out", "closed.key")
    (folder / "password").write_text("opensesame\n")
    (folder / "wrong").write_text("sesame\n")
    (folder / "text").write_text("no certificate\n")
    return folder


def files(folder: Path, **names: str) -> ServeSettings:
    return ServeSettings(model="m", **{f"ssl_{name}": str(folder / value) for name, value in names.items()})


def test_https(folder: Path, served_llm: LLM) -> None:
    settings = {
        "ssl_certfile": str(folder / "own.pem"),
        "ssl_keyfile": str(folder / "closed.key"),
        "ssl_keyfile_password_file": str(folder / "password"),
    }
    with serve_in_background(served_llm, settings=settings) as address:
        assert address.root.startswith("https://")
        trust = ssl.create_default_context(cafile=str(folder / "own.pem"))
        assert httpx.get(f"{address.root}/health", verify=trust).status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{address.root}/health")
        with pytest.raises(httpx.HTTPError):
            httpx.get(address.root.replace("https", "http") + "/health")


def test_clients_certificates(folder: Path, served_llm: LLM) -> None:
    settings = {
        "ssl_certfile": str(folder / "own.pem"),
        "ssl_keyfile": str(folder / "own.key"),
        "ssl_ca_certs": str(folder / "other.pem"),
    }
    with serve_in_background(served_llm, settings=settings) as address:
        trust = ssl.create_default_context(cafile=str(folder / "own.pem"))
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{address.root}/health", verify=trust)
        trust.load_cert_chain(folder / "other.pem", folder / "other.key")
        assert httpx.get(f"{address.root}/health", verify=trust).status_code == 200


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            {"certfile": "no.pem", "keyfile": "own.key"},
            "--ssl-certfile .*no.pem cannot be read: No such file",
        ),
        ({"certfile": "own.pem", "keyfile": "no.key"}, "--ssl-keyfile .*no.key cannot be read"),
        (
            {"certfile": "own.pem", "keyfile": "other.key"},
            "--ssl-keyfile .* is not the key of --ssl-certfile",
        ),
        ({"certfile": "text", "keyfile": "own.key"}, "--ssl-certfile .*text is not in PEM form"),
        ({"certfile": "own.pem", "keyfile": "text"}, "--ssl-keyfile .*text is not in PEM form"),
        (
            {"certfile": "own.pem", "keyfile": "closed.key"},
            "is closed by a password; give .* --ssl-keyfile-pass",
        ),
        (
            {"certfile": "own.pem", "keyfile": "closed.key", "keyfile_password_file": "wrong"},
            "the password of .* does not open it",
        ),
        (
            {"certfile": "own.pem", "keyfile": "closed.key", "keyfile_password_file": "no"},
            "--ssl-keyfile-password-file .* cannot be read",
        ),
        (
            {"certfile": "own.pem", "keyfile": "own.key", "ca_certs": "text"},
            "--ssl-ca-certs .*text holds no certificate",
        ),
        ({"certfile": "own.pem", "keyfile": "own.key", "ca_certs": "no"}, "--ssl-ca-certs .* cannot be read"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(folder: Path, names: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as found:
        context_of(files(folder, **names).tls(""))
    assert "\n" not in str(found.value)
    assert "sesame" not in str(found.value)


def test_ports_have_their_own_certificates_or_the_apis(folder: Path) -> None:
    settings = files(folder, certfile="own.pem", keyfile="own.key").model_copy(
        update={"management_ssl_certfile": "x.pem", "management_ssl_keyfile": "x.key"}
    )
    assert settings.tls("metrics_") == settings.tls("")
    assert settings.tls("management_").certfile == "x.pem"
    with pytest.raises(UsageError, match="--management-ssl-certfile x.pem cannot be read"):
        context_of(settings.tls("management_"))
    assert context_of(ServeSettings(model="m").tls("")) is None
