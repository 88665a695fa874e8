"""Which file a video goes into: chosen by the name's suffix, encoded by what this build of FFmpeg has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sightline.errors import SightlineError, UsageError

# Of x264 and VP9: lower is nearer and larger. 18 and 24 are where most eyes see no loss; the frames of a model are
# smooth, so the next steps down cost little and keep what a comparison would measure.
DEFAULT_QUALITY = {"libx264": 14, "libvpx-vp9": 18, "mpeg4": 2}
WORST_QUALITY = {"libx264": 51, "libvpx-vp9": 63, "mpeg4": 31}


@dataclass(frozen=True)
class Encoder:
    """One of FFmpeg's encoders.

    Attributes:
        name: as FFmpeg calls it.
        quality: the option that takes the quality, its name.
        options: the others.
    """

    name: str
    quality: str
    options: Mapping[str, str] = field(default_factory=dict)

    def settings(self, quality: int | None) -> dict[str, str]:
        """FFmpeg's options.

        Raises:
            UsageError: a quality that the encoder does not have.
        """
        worst = WORST_QUALITY[self.name]
        chosen = DEFAULT_QUALITY[self.name] if quality is None else quality
        if not 0 <= chosen <= worst:
            raise UsageError(
                f"crf {chosen} is not one of {self.name}; take 0 (nearest) to {worst} (smallest)"
            )
        return {**self.options, self.quality: str(chosen)}


_X264 = Encoder("libx264", "crf", {"preset": "medium"})
# Without x264 (a build under the LGPL): older, larger, played everywhere.
_MPEG4 = Encoder("mpeg4", "qscale")
_VP9 = Encoder("libvpx-vp9", "crf", {"b": "0", "deadline": "good", "cpu-used": "2", "row-mt": "1"})

_ENCODERS = {
    ".mp4": (_X264, _MPEG4),
    ".m4v": (_X264, _MPEG4),
    ".mov": (_X264, _MPEG4),
    ".mkv": (_X264, _VP9, _MPEG4),
    ".webm": (_VP9,),
}
# Pillow writes these: a GIF, and one picture where there is one frame.
PICTURES = (".gif", ".png")
SUFFIXES = (*_ENCODERS, *PICTURES)


def check_suffix(path: Path, frames: int | None = None) -> None:
    """Refuse a name that says no format, before anything is generated.

    Args:
        frames: how many the video will have, where that is known.

    Raises:
        UsageError: the suffixes that there are.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{path} has no suffix of a video; name it {path.stem or 'video'}.mp4 ({_others()})")
    if suffix == ".png" and frames is not None and frames != 1:
        raise UsageError(
            f"{path} is one picture and the video has {frames} frames; name it {path.stem}.mp4, and "
            f"take --save-frames for pictures"
        )


def encoder_for(path: Path) -> Encoder:
    """The first encoder for this suffix that is there.

    Raises:
        SightlineError: none is.
    """
    import av

    wanted = _ENCODERS[path.suffix.lower()]
    for encoder in wanted:
        try:
            av.codec.Codec(encoder.name, "w")
        except av.codec.codec.UnknownCodecError:
            continue
        return encoder
    names = " or ".join(encoder.name for encoder in wanted)
    raise SightlineError(
        f"cannot write {path}: this build of av has no {names}; run: pip install --force-reinstall av, or take .gif"
    )


def _others() -> str:
    return "or " + ", ".join(suffix for suffix in SUFFIXES if suffix not in (".mp4", ".m4v"))
