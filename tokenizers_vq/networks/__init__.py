"""Encoders and decoders. One family a file; their configs form unions on `kind`."""

from typing import Annotated

from pydantic import Field

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
from tokenizers_vq.networks.absent import AbsentDecoderConfig
from tokenizers_vq.networks.base import Decoder, Encoder
from tokenizers_vq.networks.cosmos import CosmosDecoderConfig, CosmosEncoderConfig
from tokenizers_vq.networks.dvae import DvaeDecoderConfig, DvaeEncoderConfig
from tokenizers_vq.networks.emu3 import Emu3DecoderConfig, Emu3EncoderConfig
from tokenizers_vq.networks.magvit2 import Magvit2DecoderConfig, Magvit2EncoderConfig
from tokenizers_vq.networks.maskgit import MaskgitDecoderConfig, MaskgitEncoderConfig
from tokenizers_vq.networks.titok import TitokDecoderConfig, TitokEncoderConfig, TitokProxyDecoderConfig
from tokenizers_vq.networks.vit import VitDecoderConfig, VitEncoderConfig
from tokenizers_vq.networks.vqgan import VqganDecoderConfig, VqganEncoderConfig
from tokenizers_vq.networks.vqvae import VqvaeDecoderConfig, VqvaeEncoderConfig

EncoderConfig = Annotated[
    DvaeEncoderConfig
    | CosmosEncoderConfig
    | Emu3EncoderConfig
    | Magvit2EncoderConfig
    | MaskgitEncoderConfig
    | TitokEncoderConfig
    | VqvaeEncoderConfig
    | VqganEncoderConfig
    | VitEncoderConfig,
    Field(discriminator="kind"),
]
DecoderConfig = Annotated[
    AbsentDecoderConfig
    | DvaeDecoderConfig
    | CosmosDecoderConfig
    | Emu3DecoderConfig
    | Magvit2DecoderConfig
    | MaskgitDecoderConfig
    | TitokDecoderConfig
    | TitokProxyDecoderConfig
    | VqvaeDecoderConfig
    | VqganDecoderConfig
    | VitDecoderConfig,
    Field(discriminator="kind"),
]

__all__ = ["Decoder", "DecoderConfig", "Encoder", "EncoderConfig"]
