"""The VAE's decoder over several ranks: each decodes a strip of the picture, and no seam is left between them."""

from sightline.video.parallel.vae.split import SplitDecoder, split_decoder

__all__ = ["SplitDecoder", "split_decoder"]
