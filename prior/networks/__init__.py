"""Networks of priors, one a file."""

from __future__ import annotations

from prior.networks.gpt import Gpt, GptConfig

NetworkConfig = GptConfig
Network = Gpt
