"""A prior with its tokenizer, as the verbs that draw open them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from prior.chain import Chain
    from prior.conditions import Condition
    from prior.model import Prior
    from prior.sampling import Sampler
    from tokenizers_vq.tokenizer import Tokenizer


class Opened(NamedTuple):
    """A prior or a chain of priors, with the tokenizer of its codes."""

    prior: Prior | Chain
    tokenizer: Tokenizer
    settings: dict[str, Any]
    told: Sequence[Any] | None = None
    """what each sample is told"""

    @property
    def condition(self) -> Condition | Chain:
        """What knows what can be told."""
        from prior.chain import Chain

        return self.prior if isinstance(self.prior, Chain) else self.prior.condition

    def sampler(self, plain: Sampler, fields: Sequence[str]) -> Sampler:
        """`plain` with `FIELD=VALUE`s, as this kind of network is drawn; of a chain what all kinds have."""
        from prior.chain import Chain
        from prior.sampling import Sampler
        from tokenizers_vq.config import apply_overrides

        kind = Sampler if isinstance(self.prior, Chain) else self.prior.network.Sampler
        return kind(**{**plain.to_dict(defaults=False), **apply_overrides({}, fields)})


def open_priors(models: Sequence[str], tokenizer: str | None, device: str) -> Opened:
    """The prior, or a chain of several, and their tokenizer."""
    from prior.chain import Chain
    from prior.decoding import open_tokenizer, refuse_part
    from prior.models import load
    from tokenizers_vq.devices import resolve_device

    place = resolve_device(device)
    priors = [load(model).to(place) for model in models]
    config = priors[0].config
    if len(priors) == 1:
        refuse_part(priors[0])
    name = tokenizer or config.tokenizer
    prior = priors[0] if len(priors) == 1 else Chain(priors)
    shown = models[0] if len(models) == 1 else list(models)
    settings = {"model": shown, "tokenizer": name, "fingerprint": config.fingerprint}
    opened = Opened(prior, open_tokenizer(name, config.fingerprint, models[0], place), settings)
    opened.condition.adopt(opened.tokenizer)
    return opened
