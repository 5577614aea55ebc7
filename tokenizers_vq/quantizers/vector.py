"""Vector quantization: the nearest code of one codebook (arXiv 1711.00937, and 2110.04627 for the cosine form)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq import distributed
from tokenizers_vq.codes import CodeLayout, Quantized
from tokenizers_vq.config import MOST_CODES, Size
from tokenizers_vq.quantizers import kmeans
from tokenizers_vq.quantizers.base import (
    Quantizer,
    QuantizerFields,
    Remedy,
    check_codes,
    check_in_all_processes,
    fewer_codes,
    narrower,
    straight_through,
)
from tokenizers_vq.quantizers.entropy import entropy_loss
from tokenizers_vq.quantizers.rotation import rotate
from tokenizers_vq.quantizers.sampling import sample_codes
from tokenizers_vq.quantizers.search import nearest_codes
from tokenizers_vq.quantizers.statistics import code_stats, count


class VectorQuantizerConfig(QuantizerFields):
    """One codebook: euclidean or cosine search, trained by gradient or by moving averages."""

    kind: Literal["vector"] = "vector"
    num_codes: int = Field(default=1024, ge=1, le=MOST_CODES)
    """codes in the codebook"""
    dim: Size = 256
    """width of a code; far below the network's width it is *factorised*"""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """cosine: search and lookup on L2-normalised vectors, so that only directions count"""
    gradient_through_norm: bool = True
    """cosine: straight-through around the normalised features (LlamaGen), not the identity (enhancing-transformers)"""
    codebook: Literal["gradient", "ema"] = "gradient"
    """how the codebook learns: by its loss term, or as moving averages of the features (no gradient)"""
    beta: float = 0.25
    """weight of the commitment term"""
    legacy_beta: bool = False
    """beta on the codebook term instead, commitment at 1, as taming's published models were trained"""
    decay: float = Field(default=0.99, ge=0, lt=1)
    """decay of the moving averages (ema)"""
    epsilon: float = 1e-5
    """Laplace smoothing of the moving counts (ema)"""
    revive_after: int | None = Field(default=None, ge=1)
    """a code that was unused for this many updates is moved onto a random feature of the batch; null = never"""
    kmeans_batches: int = Field(default=0, ge=0)
    """first batches (100, say) that fit the codebook to the features by k-means before it learns otherwise; 0 = none"""
    entropy_weight: float = Field(default=0.0, ge=0)
    """weight of the entropy term, which makes each choice of a code sure and the use of all codes even; 0 = none"""
    entropy_temperature: float = Field(default=0.01, gt=0)
    """squared distance that divides the probability of a code by e (entropy term); lower = harder choices"""
    estimator: Literal["straight_through", "rotation"] = "straight_through"
    """gradient of the features: the code's as it is, or turned and scaled as the feature is to its code (2410.06424)"""
    sample_temperature: float = Field(default=0.0, ge=0)
    """training draws codes from softmax(-squared distance / temperature) (RQ-VAE, 2203.01941); 0 = the nearest"""

    def remedies(self) -> list[Remedy]:
        """What of its fields keeps codes in use."""
        found = narrower(self)
        if self.distance == "euclidean":
            narrow = found[0].fields if found else ()
            found = [Remedy(("distance=cosine", *narrow), "few, L2-normalised dimensions let every code be met")]
        if self.revive_after is None:
            found.append(Remedy(("revive_after=100",), "moves dead codes to features"))
        if not self.kmeans_batches:
            found.append(Remedy(("kmeans_batches=100",), "begins with codes where the features are"))
        if not self.entropy_weight:
            found.append(Remedy(("entropy_weight=0.1",), "rewards even use"))
        return found + fewer_codes(self)

    def build(self) -> VectorQuantizer:
        """The quantizer."""
        return VectorQuantizer(**self.arguments())


class VectorQuantizer(Quantizer):
    """Features `(B, D, *grid)` to the nearest of K codes. Fields: `VectorQuantizerConfig`.

    Losses (arXiv 1711.00937, eq. 3), means over every element: `codebook` = |sg[z] - e|^2 (gradient codebook only),
    `commitment` = beta |z - sg[e]|^2; in the cosine form of normalised vectors. The estimator is straight-through; in
    the cosine form it goes through the normalisation, since lengths are free there: under the identity they drift to
    tens or hundreds, the encoder's gradient with them. `estimator="rotation"`: see `rotation.rotate`.
    Moving averages: N <- g N + (1 - g) n, m <- g m + (1 - g) sum z, e = m / N~, with N starting at 1 and counts and
    sums taken over all processes.
    `entropy` (if weighted; arXiv 2310.05737 with LlamaGen's probabilities) = weight (mean entropy - entropy of the
    mean) of softmax(-|z - e|^2 / temperature), see `entropy.entropy_loss`; its gradient reaches features and codebook.

    With `kmeans_batches` each of the first training batches moves the codebook before it is quantized (`kmeans.update`;
    Lloyd's rounds on the first), while neither gradients nor averages do. Every code gets a place in the features if
    these batches together hold more of them than there are codes; a batch may hold fewer.

    Stats of a training update: `statistics.code_stats`.
    """

    training_state: ClassVar[tuple[str, ...]] = ("age", "cluster_size", "cluster_sum", "kmeans_step", "kmeans_counts")
    age: Tensor
    cluster_size: Tensor
    cluster_sum: Tensor
    kmeans_step: Tensor
    kmeans_counts: Tensor

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = config = VectorQuantizerConfig(**fields)
        self.in_dim = self.dim = config.dim
        self.num_codes = config.num_codes
        through_norm = config.distance == "cosine" and config.gradient_through_norm
        self.straight = config.estimator == "straight_through" and not through_norm
        weight = torch.empty(config.num_codes, config.dim)
        if config.distance == "cosine" or config.codebook == "ema":
            nn.init.normal_(weight)
        else:
            nn.init.uniform_(weight, -1 / config.num_codes, 1 / config.num_codes)
        if config.codebook == "gradient":
            self.weight = nn.Parameter(weight)
        else:
            weight = self._as_looked_up(weight)
            self.register_buffer("weight", weight)
            self.register_buffer("cluster_size", torch.ones(config.num_codes))
            self.register_buffer("cluster_sum", weight.clone())
        self.register_buffer("age", torch.zeros(config.num_codes, dtype=torch.long))
        if config.kmeans_batches:  # models without it keep their keys
            self.register_buffer("kmeans_step", torch.zeros((), dtype=torch.long))
            self.register_buffer("kmeans_counts", torch.zeros(config.num_codes))
        self._known_step: int | None = None
        self.register_load_state_dict_post_hook(_forget)

    @property
    def _fitted(self) -> int:
        """`kmeans_step`, read once: an accelerator's would be waited for at every step."""
        if self._known_step is None:
            self._known_step = int(self.kmeans_step)
        return self._known_step

    def _as_looked_up(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.config.distance == "cosine" else vectors

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Of commitment and codebook term."""
        beta, legacy = self.config.beta, self.config.legacy_beta
        return {"commitment": 1.0 if legacy else beta, "codebook": beta if legacy else 1.0}

    @property
    def codebook(self) -> Tensor:
        """float32 `(K, D)`, the vectors that `lookup` gives."""
        return self._as_looked_up(self.weight.float())

    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """One code of K at every position of `grid`."""
        return CodeLayout((grid,), 1, (self.num_codes,))

    def encode(self, features: Tensor) -> Tensor:
        """`(B, D, *grid)` -> int64 `(B, *grid)`. Raises `ValueError` for non-finite features."""
        rows = rearrange(features.detach(), "b d ... -> b ... d")
        flat = rows.reshape(-1, self.dim).float()
        return nearest_codes(flat, self.weight.detach(), score=self.config.distance).reshape(rows.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 `(B, *grid)` -> `(B, D, *grid)` in the codebook's dtype.

        Raises `ValueError` (eager only) for codes that are no integers in [0, K), where a GPU would abort.
        """
        check_codes(codes, self.num_codes)
        return rearrange(self._vectors(codes), "b ... d -> b d ...").to(self.weight.dtype)

    def _vectors(self, codes: Tensor, weight: Tensor | None = None) -> Tensor:
        return self._as_looked_up(F.embedding(codes, self.weight if weight is None else weight).float())

    def forward(self, features: Tensor) -> Quantized:
        """`(B, D, *grid)` -> `Quantized`. Raises `ValueError` for non-finite features, in training in all processes."""
        with torch.autocast(features.device.type, enabled=False):
            z = features.float()
            rows = rearrange(z, "b d ... -> (b ...) d")
            if self.training:
                check_in_all_processes(rows)
            weight: Tensor = self.weight
            fitting = False
            if self.training and self.config.kmeans_batches:
                fitting = self._fitted < self.config.kmeans_batches
            if fitting:
                self._fit(rows.detach())
                weight = weight.detach() + 0 * weight  # a gradient of zero, not none, which DDP refuses
            elif self.training and self.config.revive_after is not None:
                self._revive(rows.detach(), self.config.revive_after)
            codes = self._draw(z) if self.training and self.config.sample_temperature else self.encode(z)
            target = rearrange(self._vectors(codes, weight), "b ... d -> b d ...")
            source = F.normalize(z, dim=1) if self.config.distance == "cosine" else z
            losses = self._losses(source, target, weight)
            estimated = source if self.config.gradient_through_norm else z
            if self.config.estimator == "rotation":
                estimated = rotate(estimated, target)
            quantized = straight_through(target, estimated).to(self.weight.dtype)
            stats = self._update(rows.detach(), codes.reshape(-1), move=not fitting) if self.training else {}
        return Quantized(quantized, codes, losses, stats)

    def _draw(self, z: Tensor) -> Tensor:
        rows = self._as_looked_up(rearrange(z.detach(), "b d ... -> b ... d"))
        codes = sample_codes(rows.reshape(-1, self.dim), self.codebook.detach(), self.config.sample_temperature)
        return codes.reshape(rows.shape[:-1])

    def _losses(self, source: Tensor, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
        config, weights = self.config, self.loss_weights
        losses = {"commitment": weights["commitment"] * F.mse_loss(source, target.detach())}
        if config.codebook == "gradient":
            losses["codebook"] = weights["codebook"] * F.mse_loss(target, source.detach())
        if config.entropy_weight:
            rows, vectors = rearrange(source, "b d ... -> (b ...) d"), self._as_looked_up(weight.float())
            if config.codebook == "ema":
                vectors = vectors.clone()  # the averages move the codebook in place before the backward
            losses["entropy"] = config.entropy_weight * entropy_loss(rows, vectors, config.entropy_temperature)
        return losses

    @torch.no_grad()
    def _update(self, rows: Tensor, codes: Tensor, move: bool) -> dict[str, Tensor]:
        counts = count(codes, self.num_codes)
        if self.config.codebook == "ema" and move:
            source = self._as_looked_up(rows)
            sums = distributed.sum(torch.zeros_like(self.cluster_sum, dtype=torch.float32).index_add_(0, codes, source))
            decay, epsilon = self.config.decay, self.config.epsilon
            self.cluster_size.mul_(decay).add_(counts, alpha=1 - decay)
            self.cluster_sum.mul_(decay).add_(sums, alpha=1 - decay)
            total = self.cluster_size.sum()
            smoothed = (self.cluster_size + epsilon) / (total + self.num_codes * epsilon) * total
            self.weight.copy_(self._as_looked_up(self.cluster_sum / smoothed[:, None]))
        return code_stats(counts, self.age)

    @torch.no_grad()
    def _revive(self, rows: Tensor, after: int) -> None:
        moved, vectors = kmeans.replacements(rows, self.age, after)
        self._place(moved, self._as_looked_up(vectors))

    @torch.no_grad()
    def _fit(self, rows: Tensor) -> None:
        rows, first = self._as_looked_up(rows), self._fitted == 0
        score, counts = self.config.distance, self.kmeans_counts
        centres = kmeans.seed(rows, self.codebook, score=score) if first else self.codebook
        for _ in range(kmeans.ROUNDS if first else 1):
            centres, counts = kmeans.update(rows, centres, self.kmeans_counts, score=score)
        self._place(torch.ones_like(self.age, dtype=torch.bool)[:, None], centres)
        self._known_step = self._fitted + 1
        self.kmeans_step += 1
        last = self._known_step == self.config.kmeans_batches
        self.kmeans_counts.copy_(torch.zeros_like(counts) if last else counts)

    def _place(self, moved: Tensor, vectors: Tensor) -> None:
        """Codes where `moved`, bool `(K, 1)`, holds become `vectors` `(K, D)`."""
        self.weight.data.copy_(torch.where(moved, vectors.to(self.weight.dtype), self.weight))
        if self.config.codebook == "ema":
            self.cluster_size.masked_fill_(moved[:, 0], 1.0)
            self.cluster_sum.copy_(torch.where(moved, vectors.to(self.cluster_sum.dtype), self.cluster_sum))


def _forget(quantizer: nn.Module, keys: object) -> None:
    quantizer._known_step = None  # type: ignore[assignment]  # of another state
