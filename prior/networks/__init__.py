"""Networks of priors, one a file; their configs form a union on `kind`."""

from __future__ import annotations

from prior.networks.base import Network
from prior.networks.gpt import GptConfig

NetworkConfig = GptConfig

__all__ = ["Network", "NetworkConfig"]
