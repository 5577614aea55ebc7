"""VQ autoencoders of latent-diffusion (arXiv 2112.10752), alone or inside a diffusion model's file: taming's layout."""

from __future__ import annotations

from tokenizers_vq.conversion.taming import convert, convert_discriminator

# The reference takes taming's quantizer, beta on the codebook's term included. Its interface quantizes again before
# decoding, which leaves looked-up codes as they are.
__all__ = ["convert", "convert_discriminator"]
