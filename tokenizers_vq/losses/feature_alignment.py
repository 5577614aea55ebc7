"""Alignment of the encoder's features with those of a frozen backbone, through a trained projection.

REPA (Yu et al., arXiv 2410.06940) and GigaTok take the cosine; VA-VAE (Yao et al., arXiv 2501.01423, section 3.2)
cosines up to a margin, and the similarities of positions among one another.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.losses.record import Record, levels
from tokenizers_vq.losses.stages import BackboneConfig, prepared
from tokenizers_vq.losses.terms import Term
from tokenizers_vq.networks.backbones import Backbone
from tokenizers_vq.tokenizer import Tokenizer


def marginal_cosine(projected: Tensor, target: Tensor, margin: float = 0.0) -> Tensor:
    """`mean over positions of max(0, 1 - margin - cos)`, `(B, C, h, w)` both -> float32 scalar."""
    return F.relu(1 - margin - F.cosine_similarity(projected.float(), target.float(), dim=1)).mean()


def distance_matrix(projected: Tensor, target: Tensor, margin: float = 0.0) -> Tensor:
    """`mean over pairs i, j of positions of max(0, |cos(z_i, z_j) - cos(f_i, f_j)| - margin)` -> float32 scalar.

    `(B, C, h, w)` and `(B, D, h, w)`; pairs lie in one image, and a position is a pair with itself.
    """
    with torch.autocast(projected.device.type, enabled=False):
        sides = [F.normalize(side.float().flatten(2), dim=1) for side in (projected, target)]
        first, second = (side.transpose(1, 2) @ side for side in sides)
    return F.relu((first - second).abs() - margin).mean()


class FeatureAlignmentConfig(BackboneConfig):
    """Features before the quantizer, projected, against those of a timm backbone at one stage.

    REPA's loss by default (plus 1, so that 0 is the least); VA-VAE's: `cosine_margin` 0.5, `matrix_weight` 1,
    `adaptive` with `weight` 0.1.
    """

    kind: Literal["feature_alignment"] = "feature_alignment"
    stage: int = Field(default=3, ge=0)
    """stage of the backbone, 0 = shallowest; its maps are resized to the grid of the features"""
    projection: Literal["linear", "mlp"] = "linear"
    """from the features' channels to the backbone's: one matrix (VA-VAE), or three with SiLU between them (REPA)"""
    hidden: int = Field(default=2048, ge=1)
    """mlp: width of its two hidden layers"""
    cosine_margin: float = Field(default=0.0, ge=0, lt=2)
    """cosines from 1 - margin on cost nothing"""
    matrix_weight: float = Field(default=0.0, ge=0)
    """weight of the distance-matrix loss; that of the cosine is 1"""
    matrix_margin: float = Field(default=0.25, ge=0)
    """differences of similarities up to here cost nothing"""
    adaptive: bool = False
    """balance its gradient against that of the other losses at the encoder's last layer: `weight` is its share of it"""

    def build(self, tokenizer: Tokenizer) -> FeatureAlignment:
        return FeatureAlignment(tokenizer, **self.arguments())


def projection(config: FeatureAlignmentConfig, dim: int, width: int) -> nn.Sequential:
    """`(B, dim, h, w)` -> `(B, width, h, w)`, each position by itself."""
    if config.projection == "linear":
        return nn.Sequential(nn.Conv2d(dim, width, 1, bias=False))
    hidden = config.hidden
    layers = [nn.Conv2d(dim, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, hidden, 1), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(hidden, width, 1))


class FeatureAlignment(Term):
    """`marginal_cosine + matrix_weight * distance_matrix`, averaged over the grids of the features.

    Raises `ValueError` for a tokenizer whose features lie on no two-dimensional grid, and for a stage that the backbone
    does not have.
    """

    name = "feature_alignment"

    def __init__(self, tokenizer: Tokenizer, **fields: Any) -> None:
        super().__init__()
        self.config = config = FeatureAlignmentConfig(**fields)
        self.weight, self.adaptive = config.weight, config.adaptive
        grids = tokenizer.code_layout().grids
        if any(len(grid) != 2 for grid in grids):
            raise ValueError(
                "losses.feature_alignment: needs features on a grid of rows and columns; this tokenizer's are "
                f"{grids[0][0]} in a row: take the loss out"
            )
        if config.adaptive and len(grids) > 1:
            raise ValueError(
                f"losses.feature_alignment.adaptive: needs features on one grid, this tokenizer's are on {len(grids)}: "
                "set adaptive=false"
            )
        self.network = Backbone(config.backbone)
        (width,) = self.network.widths([config.stage])
        self.projections = nn.ModuleList(projection(config, each.in_dim, width) for each in tokenizer.quantizers)

    def forward(self, record: Record) -> Tensor:
        config = self.config
        key = ("aligned", self.network.name, config.stage, config.resize, config.bands)
        target = record.once(key, lambda: self._target(record.images))
        pairs = zip(self.projections, levels(record.features), strict=True)
        return torch.stack([self.loss(project(features), target) for project, features in pairs]).mean()

    def loss(self, projected: Tensor, target: Tensor) -> Tensor:
        """Of projected features `(B, C, h, w)` and the backbone's of any size, float32 scalar."""
        target = resized(target, projected.shape[-2:])
        loss = marginal_cosine(projected, target, self.config.cosine_margin)
        if self.config.matrix_weight:
            loss = loss + self.config.matrix_weight * distance_matrix(projected, target, self.config.matrix_margin)
        return loss

    @torch.no_grad()
    def _target(self, images: Tensor) -> Tensor:
        images = prepared(images, self.config.bands, self.config.resize, self.name)
        (features,) = self.network.stages(images, [self.config.stage])
        return features.unflatten(0, (len(self.config.bands or [()]), -1)).mean(dim=0)


def resized(features: Tensor, grid: torch.Size) -> Tensor:
    """`(B, C, H, W)` -> `(B, C, *grid)`, bilinear."""
    if features.shape[-2:] == grid:
        return features
    smaller = features.shape[-1] > grid[-1]
    return F.interpolate(features.float(), size=grid, mode="bilinear", antialias=smaller)
