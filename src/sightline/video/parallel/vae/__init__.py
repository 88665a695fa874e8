"""The VAE's decoder over several ranks: each decodes a strip of the picture, and no seam is left between them."""

from sightline.video.parallel.vae.split import SplitDecoder, check_decoder, split_decoder, split_over
from sightline.video.parallel.vae.strip import check_strips

__all__ = ["SplitDecoder", "check_decoder", "check_strips", "split_decoder", "split_over"]
