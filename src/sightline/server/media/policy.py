"""What the clients of a server may make it fetch and open, and what that may cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sightline.data.media import Budget
from sightline.errors import UsageError
from sightline.server.media.refusal import Refused
from sightline.server.media.urls import normal_host

MIB = 2**20


@dataclass(frozen=True)
class MediaPolicy:
    """Every limit on media of requests; see docs/safety.md.

    Args:
        allowed_local_paths: folders whose files requests may name; none: no file is opened.
        allowed_domains: hosts that requests may name: `example.org` that host alone, `.example.org` it and all
            below it; none: every public host. Private addresses stay closed to listed hosts too.
        fetch: whether web addresses are fetched at all.
        max_media: images and clips of one request.
        max_bytes: of one medium as it is sent or stored. A 12-megapixel photo has 3 to 10 MB, a minute of
            1080p 20 to 60 MB.
        max_total_bytes: of a request's media together.
        max_pixels: width x height of a picture, or of a frame; 40 million is more than phones and most cameras
            give, and 120 MB in memory.
        max_total_pixels: of a request's pictures together: 16 photos of 12 megapixels. Some 2.5 s to decode.
        max_frames: of a clip as it is stored.
        max_seconds: length of a clip.
        max_clip_pixels: frames x width x height of a request's clips, all of which are decoded on the way to
            those that the model sees: about five minutes of 1080p at 30 a second.
        max_decode_seconds: to decode a request's media. Codecs differ by a factor of fifty, and on a CPU the engine
            computes nothing else meanwhile.
        fetch_seconds: for one medium, from looking its host up to its last byte.
        connect_seconds: to reach its host. idle_seconds: between two pieces of it.
        max_redirects: followed one after another.
        connections: at once, of the whole server. connections_per_request: of one request.
        max_held_bytes: of media that are being fetched or wait to be opened, of the whole server; beyond, requests
            get a 503.

    Raises:
        UsageError: a value that makes no sense, or a folder that is not there.
    """

    allowed_local_paths: tuple[Path, ...] = ()
    allowed_domains: tuple[str, ...] = ()
    fetch: bool = True
    max_media: int = 16
    max_bytes: int = 64 * MIB
    max_total_bytes: int = 256 * MIB
    max_pixels: int = 40_000_000
    max_total_pixels: int = 200_000_000
    max_frames: int = 50_000
    max_seconds: float = 1800.0
    max_clip_pixels: int = 20_000_000_000
    max_decode_seconds: float = 60.0
    fetch_seconds: float = 30.0
    connect_seconds: float = 5.0
    idle_seconds: float = 10.0
    max_redirects: int = 3
    connections: int = 64
    connections_per_request: int = 8
    max_held_bytes: int = 2048 * MIB

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} of the media policy must be above 0, not {getattr(self, name)}")
        if self.max_redirects < 0:
            raise UsageError(f"max_redirects of the media policy must be 0 or more, not {self.max_redirects}")
        object.__setattr__(self, "allowed_local_paths", tuple(map(_folder, self.allowed_local_paths)))
        object.__setattr__(self, "allowed_domains", tuple(map(_domain, self.allowed_domains)))

    @property
    def budget(self) -> Budget:
        """What the engine decodes of a request at most. It opens no file: `Fetcher` has done so."""
        return Budget(
            max_bytes=self.max_bytes,
            max_pixels=self.max_pixels,
            max_frames=self.max_frames,
            max_seconds=self.max_seconds,
            max_kept_pixels=2**29,
            max_total_pixels=self.max_total_pixels,
            max_clip_pixels=self.max_clip_pixels,
            max_decode_seconds=self.max_decode_seconds,
            files=False,
        )

    def allows_host(self, host: str) -> bool:
        """Whether the list of domains has `host`, which is in its one spelling (`urls.normal_host`)."""
        return not self.allowed_domains or any(
            host == domain.removeprefix(".") or (domain.startswith(".") and host.endswith(domain))
            for domain in self.allowed_domains
        )


_POSITIVE = (
    *("max_media", "max_bytes", "max_total_bytes", "max_pixels", "max_total_pixels", "max_frames"),
    *("max_seconds", "max_clip_pixels", "max_decode_seconds", "fetch_seconds", "connect_seconds"),
    *("idle_seconds", "connections", "connections_per_request", "max_held_bytes"),
)


def _folder(given: Path) -> Path:
    folder = Path(given).absolute()
    if not folder.is_dir():
        raise UsageError(f"--allowed-local-media-path {given} is not a folder; give one that exists")
    return folder


def _domain(given: str) -> str:
    dot = "." if given.startswith(".") else ""
    try:
        return dot + normal_host(given.removeprefix("."))
    except Refused as error:
        raise UsageError(
            f"--allowed-media-domain {given!r} is not a host name; write example.org, or .example.org with all below"
        ) from error
