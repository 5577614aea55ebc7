"""Priors of some grids each that together model all codes of an image: VQ-VAE-2's top, then its bottom given the top
(arXiv 1906.00446, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from prior.conditions import Condition
from prior.conditions.grids import GIVEN
from prior.model import Prior, checked_count, known_tokens
from prior.sampling import Sampler
from prior.sequences import LayoutConfig
from prior.sequences import Sequence as Tokens
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.tokenizer import Tokenizer

_APART = 0x6A09E667  # seeds of two priors of a chain: torch's generator reads the lowest 32 bits of a seed alone


class Chain:
    """The distribution of all codes, as priors of some grids give it: each is told codes that those before it drew.

    `tokens`: int64 `(B, N)` of all grids, as `layout.flatten` gives. `condition`: what priors are told besides, by its
    name, `{"class": 3}`, one for all rows or a list of B of these; each prior takes what it knows.
    """

    def __init__(self, priors: Iterable[Prior]) -> None:
        self.priors = list(priors)
        self.layout: CodeLayout = _checked(self.priors)
        self.sequence = Tokens(self.layout).to(self.priors[0].device)

    @property
    def exact(self) -> bool:
        """Whether `log_likelihood` is exact: where all priors' are (otherwise a bound)."""
        return all(prior.exact for prior in self.priors)

    @property
    def parts(self) -> dict[str, Condition]:
        """By name, what a person tells: what the priors are told, but for codes of one another."""
        told = [pair for prior in self.priors for pair in prior.condition.parts.items()]
        return {name: part for name, part in reversed(told) if name != GIVEN}

    def adopt(self, tokenizer: Tokenizer) -> None:
        """The tokenizer that is at hand, for conditions that are codes of the same one."""
        for prior in self.priors:
            prior.condition.adopt(tokenizer)

    def received(self, value: Any, picture: Callable[[str], Image]) -> Any:
        """As a condition's: what a stranger sends, in which no text is taken for a file."""
        if isinstance(value, (list, tuple)):
            return [self.received(one, picture) for one in value]
        parts = self.parts
        if isinstance(value, Mapping):
            return {name: parts[name].received(one, picture) if name in parts else one for name, one in value.items()}
        return next(iter(parts.values())).received(value, picture) if len(parts) == 1 else value

    def shown(self, value: Any) -> dict[str, Any]:
        """What one row is told as `samples.json` keeps it."""
        named = value if isinstance(value, Mapping) else dict.fromkeys(self.parts, value)
        return {key: found for name, part in self.parts.items() for key, found in part.shown(named.get(name)).items()}

    def log_likelihood(self, tokens: Tensor, condition: Any = None) -> Tensor:
        """Nats of codes `(B, N)`, float32 `(B,)`: the sum over the priors. Raises as theirs do."""
        self.sequence.check(tokens)
        rows = self._rows(condition, len(tokens))
        return torch.stack(
            [prior.log_likelihood(self._of(prior, tokens), self._told(prior, rows, tokens)) for prior in self.priors]
        ).sum(dim=0)

    def sample(
        self,
        n: int = 1,
        condition: Any = None,
        sampler: Sampler | Mapping[str, Any] | None = None,
        known: Any = None,
        first: int = 0,
        **settings: Any,
    ) -> Tensor:
        """Draw codes int64 `(n, N)` of all grids, prior by prior; arguments as `Prior.sample` takes them.

        Settings hold for every prior. What is known of a finer grid does not change what is drawn of a coarser one.
        """
        n = checked_count(n)
        codes = known_tokens(known, n, self.sequence).clone()
        rows = self._rows(condition, n)
        for number, prior in enumerate(self.priors):
            chosen = prior.sampler(sampler, settings)
            # Each draws by numbers of its own: the same ones would tie a place of one grid to a place of another.
            chosen = chosen.replace(seed=chosen.seed + number * _APART)
            told = self._told(prior, rows, codes)
            codes[:, self._places(prior)] = prior.sample(n, told, chosen, self._of(prior, codes), first)
        return codes

    def _places(self, prior: Prior) -> list[int]:
        assert prior.config.grids is not None
        return self.layout.places_of(prior.config.grids)

    def _of(self, prior: Prior, tokens: Tensor) -> Tensor:
        return tokens[:, self._places(prior)]

    def _rows(self, condition: Any, n: int) -> list[Mapping[str, Any]]:
        """What each row is told, by name. Raises `ValueError` for names and numbers that do not fit."""
        names = list(self.parts)
        if condition is None:
            return [{}] * n
        several = list(condition) if isinstance(condition, (list, tuple, Tensor)) else [condition] * n
        if len(several) != n:
            raise ValueError(f"{len(several)} conditions are given for {n} rows: give one for all, or one for each")
        if not all(isinstance(one, Mapping) for one in several):
            if len(names) != 1:
                what = f"{' and '.join(names)}: give each by its name" if names else "nothing: leave the condition out"
                raise ValueError(f"these priors are told {what}")
            several = [{names[0]: one} for one in several]
        if unknown := {name for one in several for name in one} - set(names):
            told = " and ".join(names) or "nothing"
            raise ValueError(f"no prior of this chain is told {min(unknown)}; they are told {told}")
        return several

    def _told(self, prior: Prior, rows: Sequence[Mapping[str, Any]], codes: Tensor) -> Any:
        """The condition of a prior: what it takes of each row, and the codes that it is given."""
        names = list(prior.condition.parts)
        given = codes[:, self.layout.places_of(prior.config.given)] if GIVEN in names else None
        if len(names) > 1:
            own = [{name: row[name] for name in names if name in row} for row in rows]
            return [{**row, GIVEN: given[index]} for index, row in enumerate(own)] if given is not None else own
        if names == [GIVEN]:
            return given
        found = [row.get(names[0]) for row in rows] if names else []
        return None if all(one is None for one in found) else found


def _checked(priors: Sequence[Prior]) -> CodeLayout:
    """The layout of all codes. Raises `ValueError` where the priors do not make up one distribution of them."""
    if len(priors) < 2:
        raise ValueError("a chain needs two priors or more, each of some grids, such as TOP and BOTTOM")
    wholes: list[LayoutConfig] = []
    seen: set[int] = set()
    for number, prior in enumerate(priors, 1):
        config = prior.config
        if config.grids is None or config.whole is None:
            raise ValueError(
                f"prior {number} of the chain models all codes of an image by itself: a chain takes priors that were "
                "trained with model.grids"
            )
        if config.fingerprint != priors[0].config.fingerprint or config.whole != priors[0].config.whole:
            raise ValueError(f"prior {number} of the chain is of another tokenizer or image size than the first")
        if late := sorted(set(config.given) - seen):
            raise ValueError(
                f"prior {number} of the chain is told grids {late}, which none before it draws: put coarser ones first"
            )
        if twice := sorted(set(config.grids) & seen):
            raise ValueError(
                f"grids {twice} are drawn twice, the second time by prior {number} of the chain: leave one out"
            )
        seen |= set(config.grids)
        wholes.append(config.whole)
    layout = wholes[0].build()
    if missing := sorted(set(range(len(layout.grids))) - seen):
        raise ValueError(f"no prior of the chain draws grids {missing}: add the one that does")
    return layout
