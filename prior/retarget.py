"""A new run that begins with a trained prior's weights: on codes of its own tokenizer, of another, on another grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prior.conditions import ClassConfig
from prior.decoding import short
from prior.model import Prior
from prior.recipe import PriorRecipe
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.config import read_yaml
from tokenizers_vq.training.runs import differences, has_checkpoint

_BOOK = "book."


def begin(prior: Prior, trained: Prior, name: str, say: Callable[[str], None]) -> None:
    """Fill a new prior with the weights of a trained one, called `name`; says in one line what is not taken as it is.

    Codes of another tokenizer get new parts that know codes by their numbers; another grid stretches tables of places;
    another condition begins untrained. Raises `ValueError` of one line for another kind of network, weights that do not
    fit, and a network that cannot learn other codes.
    """
    network, config = prior.network, prior.config.network
    if config.kind != (kind := trained.config.network.kind):
        raise ValueError(f"--init-from {name}: it is a {kind} network, the recipe's is {config.kind}")
    news, fresh = [], _fresh(prior, trained, name)
    if fresh:
        news.append(f"new embedding and head for codes of another tokenizer ({short(prior.config.fingerprint)})")
    regridded = _shape(prior.layout) != _shape(trained.layout)
    if regridded:
        news.append(f"positions stretched from {_shape(trained.layout)} to {_shape(prior.layout)}")
    state, kept = trained.network.state_dict(), {}
    for key, tensor in network.state_dict().items():
        if _under(key, (*fresh, _BOOK)):
            continue
        old = state.get(key)
        if old is not None and regridded and _under(key, network.of_places):
            old = stretch(old, trained.layout, prior.layout)
        if old is None or old.shape != tensor.shape:
            raise _misfit(name, key)
        kept[key] = old
    if surplus := [key for key in state if key not in kept and not _under(key, (*fresh, _BOOK))]:
        raise _misfit(name, surplus[0])
    network.load_state_dict(kept, strict=False)
    if _told(prior) == _told(trained):
        prior.condition.load_state_dict(trained.condition.state_dict())
    else:
        news.append(f"it was told {_noun(trained)}, this one is told {_noun(prior)}: what reads that begins untrained")
    other = differences(trained.config.network.to_dict(), config.to_dict())
    if other := [field for field in other if not field.startswith("rotary_scale")]:
        news.append(f"the recipe's network differs in {', '.join(other)}, and the recipe's holds")
    say(f"begins with the weights of {name}{': ' if news else ''}{'; '.join(news)}")


def _fresh(prior: Prior, trained: Prior, name: str) -> tuple[str, ...]:
    """Parts of the network that begin anew. Raises `ValueError` where codes cannot be exchanged."""
    if trained.config.fingerprint is None:
        raise ValueError(
            f"--init-from {name}: it does not say whose codes it knows: convert it again with --tokenizer, or give a "
            "prior that was trained on codes"
        )
    if prior.config.fingerprint != trained.config.fingerprint and not _same_vectors(prior, trained):
        if not prior.network.of_codes:
            raise ValueError(
                f"--init-from {name}: it knows codes of another tokenizer ({short(trained.config.fingerprint)}), and a "
                f"{prior.config.network.kind} network cannot be given others: train anew"
            )
        return prior.network.of_codes
    return ()


def _same_vectors(prior: Prior, trained: Prior) -> bool:
    """Whether both are fed by the same quantizer, whose scales or grid alone may differ: its codes mean the same."""
    book, other = (network.book.state_dict() if network.book else {} for network in (prior.network, trained.network))
    return bool(book) and book.keys() == other.keys() and all(torch.equal(book[key], other[key]) for key in book)


def _misfit(name: str, key: str) -> ValueError:
    return ValueError(
        f"--init-from {name}: its weights do not fit the recipe's model, first at network.{key}; give the recipe the "
        "same network (model.network)"
    )


def stretch(table: Tensor, before: CodeLayout, after: CodeLayout) -> Tensor:
    """A table `(extra + N, D)` with a row for each place of a layout -> that of another, bicubic over each grid.

    Further rows before those of the places stay; a table may have a row for each position, whatever its levels. Raises
    `ValueError` where grids and levels are not as many, and for a grid to a row.
    """
    if list(map(len, before.grids)) != list(map(len, after.grids)) or before.levels != after.levels:
        raise ValueError(f"places of {_shape(before)} cannot be stretched to {_shape(after)}: other grids or levels")
    levels = 1 if len(table) * before.levels == before.length else before.levels
    extra = len(table) - before.length // before.levels * levels
    rows, first = [table[:extra]], extra
    for old, new in zip(before.grids, after.grids, strict=True):
        count = math.prod(old) * levels
        grid = table[first : first + count].view(*_plane(old), levels * table.shape[1]).permute(2, 0, 1)[None]
        wide = F.interpolate(grid.float(), _plane(new), mode="bicubic", align_corners=False)[0]
        rows.append(wide.permute(1, 2, 0).reshape(-1, table.shape[1]).to(table.dtype))
        first += count
    return torch.cat(rows)


def _plane(grid: tuple[int, ...]) -> tuple[int, int]:
    return (grid[0], grid[1]) if len(grid) == 2 else (1, grid[0])


def interpolated(recipe: PriorRecipe, layout: CodeLayout, trained: Prior) -> PriorRecipe:
    """The recipe whose rotary positions span the grid that the trained network knew (arXiv 2306.15595).

    A recipe that says `rotary_scale` itself keeps it. Raises `ValueError` for a grid to a row, and the reverse.
    """
    known = getattr(trained.config.network, "rotary_scale", None)
    if known is None or not _free(recipe):
        return recipe
    if len(trained.layout.grids[-1]) != len(layout.grids[-1]):
        raise ValueError(
            f"--init-from: it knows places of {_shape(trained.layout)}, which say nothing of those of "
            f"{_shape(layout)}: a grid is no row; train anew"
        )
    pairs = zip(known, _plane(trained.layout.grids[-1]), _plane(layout.grids[-1]), strict=True)
    return _scaled(recipe, tuple(factor * old / new for factor, old, new in pairs))


def as_begun(recipe: PriorRecipe, out: Path) -> PriorRecipe:
    """The recipe with the rotary positions of the run that goes on in `out`, where it says none itself."""
    if not has_checkpoint(out) or not _free(recipe):
        return recipe
    kept: Any = read_yaml(out / "recipe.yaml")
    return _scaled(recipe, tuple(kept.get("model", {}).get("network", {}).get("rotary_scale", (1.0, 1.0))))


def _free(recipe: PriorRecipe) -> bool:
    """Whether the network turns by positions whose scale the recipe leaves open."""
    network = recipe.model.network
    return getattr(network, "rotary_scale", None) == (1.0, 1.0) and getattr(network, "positions", None) != "learned"


def _scaled(recipe: PriorRecipe, scale: tuple[float, ...]) -> PriorRecipe:
    return recipe.replace(model=recipe.model.replace(network=recipe.model.network.replace(rotary_scale=scale)))


def _under(key: str, parts: tuple[str, ...]) -> bool:
    return any(key == part or key.startswith(part if part.endswith(".") else f"{part}.") for part in parts)


def _told(prior: Prior) -> Any:
    """What the condition is, as far as its weights depend on it: how often it was left out in training does not."""
    return _without_dropout(prior.config.condition.to_dict())


def _without_dropout(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_dropout(one) for key, one in value.items() if key != "dropout"}
    return [_without_dropout(one) for one in value] if isinstance(value, (list, tuple)) else value


def _noun(prior: Prior) -> str:
    """In words, with what is the same of two conditions of a kind."""
    config = prior.config.condition
    count = f" of {config.num_classes}" if isinstance(config, ClassConfig) else ""
    return f"{prior.condition.noun or 'nothing'}{count}"


def _shape(layout: CodeLayout) -> str:
    grids = " + ".join("x".join(map(str, grid)) for grid in layout.grids)
    return f"{grids} x {layout.levels} levels" if layout.levels > 1 else grids
