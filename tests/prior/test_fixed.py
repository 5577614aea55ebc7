"""Drawing by operators of fixed shapes gives the codes of drawing place by place, and asks the host for nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import prior
from prior.conditions import ClassConfig
from prior.networks.autoregressive import AutoregressiveSampler
from prior.networks.fixed import FixedState
from prior.networks.gpt import GptConfig
from prior.networks.masked import MaskedSampler
from prior.sequences import LayoutConfig
from tests.training.test_waits import Waits

FORMS: dict[str, dict[str, Any]] = {
    "rope": {},
    "llamagen, qk norm": {"positions": "llamagen", "qk_norm": True},
    "learned, gelu": {"positions": "learned", "mlp": "gelu", "norm": "layer", "bias": True},
    "adaln of places, random order": {"entry": ("prefix", "adaln"), "adaln_places": True, "order": "random"},
    "cross": {"entry": ("cross",)},
}


def made(levels: int = 1, **fields: Any) -> prior.Prior:
    torch.manual_seed(0)
    network = GptConfig(layers=2, dim=32, heads=2, **fields)
    layout = LayoutConfig(grids=((3, 3),), levels=levels, sizes=(16,) * levels)
    found = prior.Prior(prior.PriorConfig(network=network, condition=ClassConfig(num_classes=3), layout=layout)).eval()
    for parameter in found.parameters():  # as trained ones, no part is still
        torch.nn.init.normal_(parameter, std=0.2)
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", [1, 2])
def test_the_codes_are_those_of_place_by_place(form: str, levels: int) -> None:
    model = made(levels, **FORMS[form])
    known = torch.full((9 * levels,), -1)
    known[:4] = 3
    for settings in ({"guidance": 2.0}, {"top_p": 0.9, "known": known}):
        plain, fixed = (model.sample(3, [0, 1, 2], graph=graph, seed=5, **settings) for graph in (False, True))
        assert torch.equal(plain, fixed)


class Shapes(TorchDispatchMode):
    """Every operator with the shapes of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [tuple(leaf.shape) for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        self.seen.append((str(func), shapes))
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def test_each_code_is_the_same_operators_on_the_same_shapes_and_waits_for_nothing() -> None:
    model = made(2, entry=("prefix", "adaln"), adaln_places=True)
    state = FixedState(model.network.start(torch.empty(2, 0, dtype=torch.int64), model.context(1, 2)))
    runs = []
    for _ in range(3):
        with Shapes() as shapes, Waits() as waits:
            state.compute()
        assert not waits.found
        runs.append(shapes.seen)
    assert runs[0] == runs[1] == runs[2] and len(runs[0]) > 20


def test_where_there_is_no_fixed_form_it_is_said() -> None:
    with pytest.raises(ValueError, match="graph: draws one by one, where window=4"):
        AutoregressiveSampler(graph=True, window=4)
    assert "graph" not in MaskedSampler.model_fields
