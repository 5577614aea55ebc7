"""The parts of an adversary that law 13 is tried on: a new one gets all its laws by one line in its list.

Each case stands in an adversary whose other parts are plain. A law that cannot apply is named in `exempt` with its
reason, which the tests show and `python -m tests.laws.table` prints.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import tokenizers_vq as tvq
from tests.laws.law import Role
from tokenizers_vq.batch import Batch
from tokenizers_vq.discriminators import (
    AttentionConfig,
    AugmentedConfig,
    BottleneckConfig,
    ClassHeadConfig,
    DCGANConfig,
    JointConfig,
    MinibatchConfig,
    MultiscaleConfig,
    PairConfig,
    PatchGANConfig,
    ProjectionConfig,
    SeveralConfig,
    StyleGAN2Config,
    TextConfig,
    UNetConfig,
    VisionAidedConfig,
)
from tokenizers_vq.discriminators.base import Discriminator
from tokenizers_vq.losses.objectives import (
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    Objective,
    RelativisticAverage,
    Wasserstein,
)
from tokenizers_vq.losses.record import Record
from tokenizers_vq.training.adversary import Adversary
from tokenizers_vq.training.recipe import AdversaryConfig, OptimizerConfig

SIDE, LABELS, DIM = 32, 4, 8
PLAIN = PatchGANConfig(width=4, layers=2, norm="none")
"""the discriminator of cases that are about something else"""
INNER = PatchGANConfig(width=6, layers=2, norm="none")
"""the one inside wrappers: with PLAIN a bias has a gradient of next to nothing there, and so of rounding"""


@functools.cache
def tokenizer() -> tvq.Tokenizer:
    """A small one, of 32 x 32 pixels; nothing of it changes."""
    torch.manual_seed(2)
    return tvq.create(
        "vqvae-tiny-64", [f"image_size={SIDE}", "encoder.width=8", "decoder.width=8", "quantizer.num_codes=16"]
    ).eval()


def make_adversary(**parts: Any) -> Adversary:
    """The adversary of a recipe with these parts, its weights wide enough to tell images apart."""
    seen_by = tokenizer()  # its making draws
    torch.manual_seed(5)
    # Inside its margin the hinge's slope is the same for all: no gradient at a last bias, or under a batch norm.
    config = AdversaryConfig(**{"discriminator": PLAIN, "objective": NonSaturating(), **parts})
    adversary = Adversary(config, OptimizerConfig(), seen_by)
    widen(adversary.discriminator)
    return adversary


def widen(discriminator: Discriminator) -> Discriminator:
    """Weights drawn as small as published ones would leave penalties at 1e-6: those of one N(0, 0.02) get 0.1."""
    with torch.no_grad():
        for parameter in discriminator.parameters():
            if parameter.requires_grad and parameter.ndim == 4 and parameter.std() < 0.05:
                parameter.mul_(5)
            if parameter.ndim == 0 and not parameter:  # a gate, shut at first
                parameter.fill_(0.5)
    return discriminator


def make_record(discriminator: Discriminator, rows: slice = slice(None), dtype: torch.dtype = torch.float32) -> Record:
    """What the step would give: eight images with keys, labels and captions, their features, codes and output."""
    seen_by = tokenizer()
    torch.manual_seed(1)
    images = torch.rand(8, 3, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        out = seen_by(images, render=False)
    quantized = out.quantized._replace(
        features=out.quantized.features[rows].to(dtype), codes=out.quantized.codes[rows], losses={}, stats={}
    )
    words = [(f"picture {i}",) for i in range(8)]
    batch = Batch(
        images[rows].to(dtype), [str(i) for i in range(8)][rows], (torch.arange(8) % LABELS)[rows], words[rows]
    )
    return Record(
        batch,
        (out.output + 0.3 * torch.randn_like(out.output))[rows].to(dtype),  # nearer to images than to grey
        features=out.features[rows].to(dtype),
        quantized=quantized,
        tokenizer=seen_by,
        discriminator=discriminator,
    )


@dataclass(frozen=True)
class DiscriminatorCase:
    """A discriminator, or a wrapper of one, by its config."""

    name: str
    config: Any
    refused: tuple[int, int]
    """height and width for which it cannot be built"""
    exempt: dict[str, str] = field(default_factory=dict)
    """law -> one line: why it does not apply"""

    def adversary(self) -> Adversary:
        return make_adversary(discriminator=self.config)

    def build(self) -> Discriminator:
        """In train mode, for images of 32 x 32."""
        return self.adversary().discriminator


def patchgan(norm: str, **fields: Any) -> DiscriminatorCase:
    """A case of PatchGAN."""
    config = PatchGANConfig(width=4, layers=2, norm=norm, **fields)  # type: ignore[arg-type]
    return DiscriminatorCase(f"patchgan-{norm}", config, (8, 32))


DISCRIMINATORS = Role(
    "discriminator",
    [
        patchgan("batch"),
        patchgan("spectral"),
        patchgan("none"),
        patchgan("group", downsampling="blur"),
        patchgan("virtual", reference_size=8),
        DiscriminatorCase("stylegan2", StyleGAN2Config(width=1 / 64), (24, 32)),
        DiscriminatorCase("dcgan", DCGANConfig(width=4), (4, 32)),
        DiscriminatorCase("dcgan-spectral-blur", DCGANConfig(width=4, norm="spectral", downsampling="blur"), (4, 32)),
        DiscriminatorCase("dcgan-virtual", DCGANConfig(width=4, depth=2, norm="virtual", reference_size=8), (4, 32)),
        DiscriminatorCase("attention-dot", AttentionConfig(width=8, resolution=16), (4, 32)),
        DiscriminatorCase("attention-l2", AttentionConfig(width=8, resolution=8, score="l2"), (4, 32)),
        DiscriminatorCase("multiscale", MultiscaleConfig(width=4, scales=3), (36, 32)),
        DiscriminatorCase("unet", UNetConfig(width=4, depth=2), (30, 32)),
        DiscriminatorCase(
            "vision_aided",
            VisionAidedConfig(stages=(0, 2), width=4),
            (4, 32),
        ),
        DiscriminatorCase("pair", PairConfig(discriminator=INNER), (8, 32)),
        DiscriminatorCase("joint", JointConfig(discriminator=INNER, dim=DIM, width=2), (8, 32)),
        DiscriminatorCase("projection", ProjectionConfig(discriminator=INNER, num_classes=LABELS), (8, 32)),
        DiscriminatorCase(
            "class_head-pair",
            ClassHeadConfig(discriminator=PairConfig(discriminator=INNER, blur=0.0), num_classes=LABELS),
            (8, 32),
        ),
        DiscriminatorCase(
            "several",
            SeveralConfig(
                discriminators=(
                    MultiscaleConfig(width=4, scales=2),
                    ClassHeadConfig(discriminator=INNER, num_classes=LABELS),
                ),
                weights=(1.0, 3.0),
            ),
            (8, 32),
        ),
        DiscriminatorCase(
            "augmented-pair",
            AugmentedConfig(discriminator=PairConfig(discriminator=INNER), p=0.8, noise=0.1),
            (8, 32),
        ),
        DiscriminatorCase("augmented-ada", AugmentedConfig(discriminator=INNER, p="ada"), (8, 32)),
        DiscriminatorCase("text", TextConfig(discriminator=INNER, length=16, buckets=64, width=8), (8, 32)),
        DiscriminatorCase("bottleneck", BottleneckConfig(discriminator=INNER, rate=0.1), (8, 32)),
        DiscriminatorCase(
            "projection-bottleneck-unet",
            ProjectionConfig(
                discriminator=BottleneckConfig(discriminator=UNetConfig(width=4, depth=2)), num_classes=LABELS
            ),
            (30, 32),
        ),
        DiscriminatorCase("minibatch", MinibatchConfig(discriminator=INNER, kernels=8, dim=3), (8, 32)),
    ],
    {
        "step": "one step is finite, with a gradient on every trainable parameter and at the output",
        "precision": "near float32's losses and finite in bf16 autocast",
        "compile": "compiled into one graph, logits and gradients are the eager ones",
        "double": "a penalty on its slope has the gradient of finite differences in float64",
        "pure": "the generator's gradient leaves its state and its gradients as they are",
        "processes": "two processes equal one: gradients, buffers",
        "state": "saved, described, built again and filled, it judges bitwise the same",
        "refusal": "sizes and channels that it cannot take are refused in one line before step 0",
    },
    "test_adversaries.py",
)


@dataclass(frozen=True)
class ObjectiveCase:
    """An objective and its formulas: of the logits of real and fake images at one scale, float64."""

    name: str
    config: Objective
    generator: Callable[[Tensor, Tensor], Tensor]
    discriminator: Callable[[Tensor, Tensor], Tensor]
    between: float = 0.0
    """a logit from which it pulls the two sides apart"""
    exempt: dict[str, str] = field(default_factory=dict)


def hinge64(r: Tensor, f: Tensor) -> Tensor:
    """The discriminator's hinge loss."""
    return ((1 - r).clamp(min=0).mean() + (1 + f).clamp(min=0).mean()) / 2


def logistic64(r: Tensor, f: Tensor) -> Tensor:
    """Minus the log likelihood of the right answers."""
    return -(torch.sigmoid(r).log().mean() + torch.sigmoid(-f).log().mean())


def smooth64(r: Tensor, f: Tensor) -> Tensor:
    """The same, where of images 0.9 is the right answer."""
    one_sided = 0.9 * torch.sigmoid(r).log() + 0.1 * torch.sigmoid(-r).log()
    return -(one_sided.mean() + torch.sigmoid(-f).log().mean())


def squares64(a: float, b: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The discriminator's least squares."""
    return lambda r, f: ((r - b).square().mean() + (f - a).square().mean()) / 2


OBJECTIVES = Role(
    "objective",
    [
        ObjectiveCase("hinge", Hinge(), lambda r, f: -f.mean(), hinge64),
        ObjectiveCase(
            "hinge-non-saturating",
            Hinge(generator_loss="non_saturating"),
            lambda r, f: -torch.sigmoid(f).log().mean(),
            hinge64,
        ),
        ObjectiveCase("non-saturating", NonSaturating(), lambda r, f: -torch.sigmoid(f).log().mean(), logistic64),
        ObjectiveCase(
            "non-saturating-smooth",
            NonSaturating(real_target=0.9),
            lambda r, f: -torch.sigmoid(f).log().mean(),
            smooth64,
        ),
        ObjectiveCase("minimax", Minimax(), lambda r, f: (1 - torch.sigmoid(f)).log().mean(), logistic64),
        ObjectiveCase(
            "minimax-smooth", Minimax(real_target=0.9), lambda r, f: (1 - torch.sigmoid(f)).log().mean(), smooth64
        ),
        ObjectiveCase(
            "least-squares", LeastSquares(), lambda r, f: (f - 1).square().mean() / 2, squares64(0, 1), between=0.25
        ),
        ObjectiveCase(
            "least-squares-pearson",
            LeastSquares(targets=(-1.0, 1.0, 0.0)),
            lambda r, f: f.square().mean() / 2,
            squares64(-1, 1),
            between=-0.25,
        ),
        ObjectiveCase("wasserstein", Wasserstein(), lambda r, f: -f.mean(), lambda r, f: f.mean() - r.mean()),
        ObjectiveCase(
            "relativistic-average",
            RelativisticAverage(),
            lambda r, f: logistic64(f - r.mean(), r - f.mean()),
            lambda r, f: logistic64(r - f.mean(), f - r.mean()),
        ),
        ObjectiveCase(
            "relativistic-average-smooth",
            RelativisticAverage(real_target=0.9),
            lambda r, f: logistic64(f - r.mean(), r - f.mean()),
            lambda r, f: smooth64(r - f.mean(), f - r.mean()),
        ),
    ],
    {
        "formula": "both losses are those of their formulas in float64, averaged over scales",
        "chance": "`chance` is the least loss of a discriminator that answers the same to all, `best` that of any",
        "accuracy": "a discriminator is right at what is pulled apart, wrong at the reverse, and half right at chance",
        "descent": "the generator raises the logits of its images; the discriminator does the reverse",
        "finite": "finite with finite gradients at logits of +-10,000",
        "precision": "float32 inside bf16 autocast",
        "processes": "gradients and accuracy of two processes are those of one",
        "described": "its config is of the union and can be written and read",
    },
    "test_objectives.py",
)
