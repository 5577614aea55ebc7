"""`Frozen`: networks inside losses and discriminators whose weights come from elsewhere and stay as they are."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn
from typing_extensions import Self


class Frozen(nn.Module):
    """A network that never trains: no gradient, always in eval mode, its weights in no checkpoint and no saved folder.

    Made around `model`, or as the base of a class that adds its parts itself and then calls `requires_grad_(False)`.
    """

    model: Any

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        if model is not None:
            self.model = model.requires_grad_(False)
        self.eval()
        self.register_load_state_dict_pre_hook(_as_it_is)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: batch statistics are part of the weights."""
        return super().train(False)

    def state_dict(self, *args: Any, destination: Any = None, **options: Any) -> Any:
        """Nothing."""
        return OrderedDict() if destination is None else destination


def _as_it_is(module: Frozen, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give what is loaded the weights that are there, so that strict loading does not miss them."""
    state.update(super(Frozen, module).state_dict(prefix=prefix))
