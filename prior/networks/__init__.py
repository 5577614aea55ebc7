"""Networks of priors, one a file; their configs form a union on `kind`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from prior.networks.base import Network
from prior.networks.gpt import GptConfig
from prior.networks.maskbit import MaskBitConfig
from prior.networks.maskgit import MaskGitConfig
from prior.networks.pixelcnn import PixelCnnConfig
from prior.networks.pixelsnail import PixelSnailConfig
from prior.networks.rq import RqConfig
from prior.networks.uvit import UvitConfig
from prior.networks.var import VarConfig

NetworkConfig = Annotated[
    GptConfig | MaskGitConfig | MaskBitConfig | UvitConfig | VarConfig | RqConfig | PixelCnnConfig | PixelSnailConfig,
    Field(discriminator="kind"),
]

__all__ = ["Network", "NetworkConfig"]
