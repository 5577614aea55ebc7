"""Quantizers: features to codes and back. One a file; their configs form a union on `kind` (`books.Book`)."""

from typing import Annotated

from pydantic import Field

from tokenizers_vq.quantizers.base import Quantizer
from tokenizers_vq.quantizers.books import Book
from tokenizers_vq.quantizers.bsq import BsqQuantizer, BsqQuantizerConfig
from tokenizers_vq.quantizers.diveq import DiveqQuantizer, DiveqQuantizerConfig
from tokenizers_vq.quantizers.fsq import FsqQuantizer, FsqQuantizerConfig
from tokenizers_vq.quantizers.gumbel import GumbelQuantizer, GumbelQuantizerConfig
from tokenizers_vq.quantizers.ibq import IbqQuantizer, IbqQuantizerConfig
from tokenizers_vq.quantizers.lfq import LfqQuantizer, LfqQuantizerConfig
from tokenizers_vq.quantizers.multiscale import MultiscaleQuantizer, MultiscaleQuantizerConfig
from tokenizers_vq.quantizers.product import ProductQuantizer, ProductQuantizerConfig
from tokenizers_vq.quantizers.residual import ResidualQuantizer, ResidualQuantizerConfig
from tokenizers_vq.quantizers.simvq import SimVqQuantizer, SimVqQuantizerConfig
from tokenizers_vq.quantizers.vector import VectorQuantizer, VectorQuantizerConfig
from tokenizers_vq.quantizers.vqbridge import VqBridgeQuantizer, VqBridgeQuantizerConfig

QuantizerConfig = Annotated[
    Book | ResidualQuantizerConfig | MultiscaleQuantizerConfig | ProductQuantizerConfig,
    Field(discriminator="kind"),
]

__all__ = [
    "BsqQuantizer",
    "BsqQuantizerConfig",
    "DiveqQuantizer",
    "DiveqQuantizerConfig",
    "FsqQuantizer",
    "FsqQuantizerConfig",
    "GumbelQuantizer",
    "GumbelQuantizerConfig",
    "IbqQuantizer",
    "IbqQuantizerConfig",
    "LfqQuantizer",
    "LfqQuantizerConfig",
    "MultiscaleQuantizer",
    "MultiscaleQuantizerConfig",
    "ProductQuantizer",
    "ProductQuantizerConfig",
    "Quantizer",
    "QuantizerConfig",
    "ResidualQuantizer",
    "ResidualQuantizerConfig",
    "SimVqQuantizer",
    "SimVqQuantizerConfig",
    "VectorQuantizer",
    "VectorQuantizerConfig",
    "VqBridgeQuantizer",
    "VqBridgeQuantizerConfig",
]
