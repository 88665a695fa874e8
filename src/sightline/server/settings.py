"""`ServeSettings`: what `sightline serve` runs with, checked as a whole, and what each part of it gets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import model_validator
from pydantic.fields import FieldInfo

from sightline.errors import UsageError
from sightline.server.options import (
    GROUPS,
    AccessOptions,
    LimitOptions,
    MediaOptions,
    MemoryOptions,
    ModelOptions,
    NetworkOptions,
    RunOptions,
)

if TYPE_CHECKING:
    from sightline.server.limits import Limits

PORTS = ("", "management_", "metrics_")
# What the engine calls an option that has another name here.
_ENGINE_NAMES = {
    "kv_cache_memory": "kv_cache_memory_bytes",
    "prefix_caching": "enable_prefix_caching",
    "encoder_cache": "encoder_cache_bytes",
    "image_cache": "image_cache_bytes",
}


@dataclass(frozen=True)
class TlsFiles:
    """The files of a port's TLS, and the options that name them. All None: the port speaks plain http."""

    certfile: str | None
    keyfile: str | None
    password_file: str | None
    ca_certs: str | None
    prefix: str = ""

    def option(self, name: str) -> str:
        return f"--{self.prefix}ssl_{name}".replace("_", "-")


class ServeSettings(
    RunOptions, LimitOptions, AccessOptions, NetworkOptions, MediaOptions, MemoryOptions, ModelOptions
):
    """Every option of `sightline serve`; its groups explain them.

    Raises:
        pydantic.ValidationError: a value of the wrong type or range, or two that contradict each other.
    """

    @model_validator(mode="after")
    def _fits_together(self) -> ServeSettings:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ValueError(
                f"prompt_lookup_min {self.prompt_lookup_min} is above prompt_lookup_max {self.prompt_lookup_max}"
            )
        for prefix in PORTS:
            self._check_tls(prefix)
        for name in ("management_port", "metrics_port"):
            if getattr(self, name) and getattr(self, name) == self.port and self._host_of(name) == self.host:
                raise ValueError(f"{name} is {self.port}, as is port; leave it out to have one port for both")
        if self.management_port and self._place("management_") == self._place("metrics_"):
            raise ValueError(f"management_port and metrics_port are both {self.management_port}; choose two")
        for origin in self.cors_origin:
            parts = urlsplit(origin)
            site = f"{parts.scheme}://{parts.netloc}"
            if origin != "*" and (parts.scheme not in ("http", "https") or site != origin):
                raise ValueError(f"cors_origin {origin!r} is not a site; write https://example.com or *")
        if not all(self.api_key):
            raise ValueError("an api_key is empty; leave it out to ask for none")
        for name in self.adapters:
            if name in self.names:
                raise ValueError(
                    f"adapter {name!r} is called as the model is; write another name, NAME=FOLDER"
                )
        return self

    def _check_tls(self, prefix: str) -> None:
        names = [
            f"{prefix}ssl_{name}" for name in ("certfile", "keyfile", "keyfile_password_file", "ca_certs")
        ]
        certificate, key, *others = (getattr(self, name) for name in names)
        if (certificate is None) != (key is None):
            has, lacks = names[:2] if certificate else names[1::-1]
            raise ValueError(f"{has} needs {lacks} beside it")
        if certificate is None and any(others):
            raise ValueError(f"{names[2] if others[0] else names[3]} needs {names[0]} and {names[1]}")

    def _host_of(self, name: str) -> str:
        return self._place(name.removesuffix("port"))[0]

    def _place(self, prefix: str) -> tuple[str, int | None]:
        if prefix == "management_":
            return self.management_host or "127.0.0.1", self.management_port
        return (self.metrics_host or self.host, self.metrics_port) if prefix else (self.host, self.port)

    # What the parts of the server get

    def places(self) -> dict[str, tuple[str, int]]:
        """Host and port of each listener by its prefix: "", and "management_" and "metrics_" where they are apart."""
        found = {prefix: self._place(prefix) for prefix in PORTS}
        return {prefix: (host, port) for prefix, (host, port) in found.items() if port is not None}

    def tls(self, prefix: str) -> TlsFiles:
        """The TLS files of a listener: its own, or those of the API."""
        used = prefix if getattr(self, f"{prefix}ssl_certfile") else ""
        certificate, key, password, authorities = (
            getattr(self, f"{used}ssl_{name}")
            for name in ("certfile", "keyfile", "keyfile_password_file", "ca_certs")
        )
        return TlsFiles(certificate, key, password, authorities, prefix=used)

    @property
    def adapters(self) -> dict[str, str]:
        """Folders of adapters by the names that requests choose them by."""
        found: dict[str, str] = {}
        for text in self.adapter:
            name, equals, folder = text.partition("=")
            if not equals:
                name, folder = Path(text).resolve().name, text
            if not name or not folder:
                raise ValueError(f"adapter {text!r} is not NAME=FOLDER or a folder")
            if name in found:
                raise ValueError(f"two adapters are called {name!r}; write NAME=FOLDER to tell them apart")
            found[name] = folder
        return found

    @property
    def names(self) -> list[str]:
        """What clients may call the model: the given names, or the folder's name and its path as given."""
        folder = Path(self.model)
        return self.served_model_name or list(dict.fromkeys([folder.resolve().name, self.model]))

    def engine_arguments(self) -> dict[str, Any]:
        """The arguments of `LLM`, its model among them."""
        ours = ModelOptions.model_fields | MemoryOptions.model_fields
        skipped = {"adapter", "served_model_name"}
        arguments = {
            _ENGINE_NAMES.get(name, name): getattr(self, name) for name in ours if name not in skipped
        }
        arguments |= {
            name: getattr(self, name) for name in ("max_pixels", "min_pixels", "limit_mm_per_prompt")
        }
        if self.adapters:
            arguments["adapters"] = self.adapters
        return arguments

    def limits(self) -> Limits:
        """What one client may ask for."""
        from sightline.server.limits import Limits

        known = {field.name for field in fields(Limits)} & set(type(self).model_fields)
        return Limits(**{name: getattr(self, name) for name in known}, medium=self.media_policy().budget)

    def media_policy(self) -> Any:
        """What clients may make the server fetch and open; a `sightline.server.media.MediaPolicy`.

        Raises:
            UsageError: an allowed folder is not there, or a host name is none.
        """
        from sightline.server.media.policy import MediaPolicy

        named = {
            field.name: getattr(self, f"media_{field.name}")
            for field in fields(MediaPolicy)
            if f"media_{field.name}" in type(self).model_fields
        }
        return MediaPolicy(
            allowed_local_paths=tuple(map(Path, self.allowed_local_media_path)),
            allowed_domains=tuple(self.allowed_media_domain),
            fetch=self.fetch_media,
            max_media=self.max_media,
            **named,
        )

    def key_digests(self) -> list[bytes]:
        """SHA-256 of every API key, of the option and of the file; none where no key is asked for.

        Raises:
            UsageError: the file cannot be read, or holds no key.
        """
        keys = [*self.api_key, *(read_keys(Path(self.api_key_file)) if self.api_key_file else [])]
        return [hashlib.sha256(key.encode()).digest() for key in keys]


def read_keys(path: Path) -> list[str]:
    """The keys of a file, one a line, without comments."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"--api-key-file {path} cannot be read: {reason}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise UsageError(f"--api-key-file {path} holds no key; write one a line, or leave the option out")
    return keys


def all_options() -> Iterator[tuple[str, str, FieldInfo]]:
    """Every option in order: its group's title, its name and its field."""
    for group in GROUPS:
        for name, field in group.model_fields.items():
            yield (group.__doc__ or "").strip(), name, field


def other_names(field: FieldInfo) -> list[str]:
    """What other tools call an option."""
    return list(_extra(field)["also"])


def is_secret(field: FieldInfo) -> bool:
    """Whether an option's value must not be printed."""
    return bool(_extra(field)["secret"])


def is_size(field: FieldInfo) -> bool:
    """Whether an option is a number of bytes, which may be written like 4GiB."""
    return bool(_extra(field)["size"])


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    return extra
