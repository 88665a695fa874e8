"""Foreign data formats, and their conversion to rows of our own."""

from sightline.data.formats.base import Options
from sightline.data.formats.registry import FORMATS, ConvertReport, convert, detect

__all__ = ["FORMATS", "ConvertReport", "Options", "convert", "detect"]
