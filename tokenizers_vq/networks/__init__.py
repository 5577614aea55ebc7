"""Encoders and decoders. One family a file; their configs form unions on `kind`."""

from typing import Annotated

from pydantic import Field

from tokenizers_vq.networks.base import Decoder, Encoder
from tokenizers_vq.networks.vqgan import VqganDecoderConfig, VqganEncoderConfig
from tokenizers_vq.networks.vqvae import VqvaeDecoderConfig, VqvaeEncoderConfig

EncoderConfig = Annotated[VqvaeEncoderConfig | VqganEncoderConfig, Field(discriminator="kind")]
DecoderConfig = Annotated[VqvaeDecoderConfig | VqganDecoderConfig, Field(discriminator="kind")]

__all__ = ["Decoder", "DecoderConfig", "Encoder", "EncoderConfig"]
