"""The terms that law 14 is tried on: a new one gets all its laws by one line in TERMS.

A term's own facts (its formula, an output that it can read) are functions of a case; a law that cannot apply is named
in `exempt` with its reason, which the tests show and `python -m tests.laws.table` prints.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import tokenizers_vq as tvq
from tests.conftest import SHARED
from tests.laws.adversaries import PLAIN, widen
from tests.laws.law import Role
from tokenizers_vq.batch import Batch
from tokenizers_vq.discriminators.base import Discriminator
from tokenizers_vq.losses.attribute_reversal import AttributeReversal, AttributeReversalConfig
from tokenizers_vq.losses.classifier_logits import ClassifierLogits, ClassifierLogitsConfig
from tokenizers_vq.losses.code_recovery import CodeRecoveryConfig
from tokenizers_vq.losses.feature_alignment import FeatureAlignment, FeatureAlignmentConfig, resized
from tokenizers_vq.losses.feature_matching import FeatureMatchingConfig
from tokenizers_vq.losses.focal_frequency import FocalFrequency, FocalFrequencyConfig
from tokenizers_vq.losses.gram import Gram, GramConfig
from tokenizers_vq.losses.logit_laplace import LogitLaplaceConfig
from tokenizers_vq.losses.perceptual import Lpips, LpipsConfig, Perceptual, PerceptualConfig
from tokenizers_vq.losses.proxy_codes import ProxyCodes, ProxyCodesConfig
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.terms import Huber, HuberConfig, L1Config, L2Config, Term

SIDE, LABELS = 32, 3
TRUNK = SHARED / "data/backbones/squeezenet1_1_fp16.pth"
PIXELS = ["pixels.low=0.1", "pixels.high=0.9", "decoder.output=logit_laplace"]


@functools.cache
def tokenizer(*overrides: str) -> tvq.Tokenizer:
    """A small one, whose range of pixels and whose decoder a case may choose."""
    torch.manual_seed(2)
    narrow = [f"image_size={SIDE}", "encoder.width=8", "decoder.width=8", "quantizer.num_codes=16"]
    return tvq.create("vqvae-tiny-64", [*narrow, *overrides]).eval()


@functools.cache
def proxy() -> tempfile.TemporaryDirectory:
    """A saved tokenizer of 12 codes on 8 x 8, for `proxy_codes`."""
    torch.manual_seed(1)
    fields = ("width=8", "multipliers=[1, 1, 2]", "blocks=1", "groups=4")
    small = [f"{part}.{field}" for part in ("encoder", "decoder") for field in fields]
    made = tvq.create("maskgit-f16-1024", [f"image_size={SIDE}", *small, "quantizer.num_codes=12", "quantizer.dim=6"])
    nn.init.normal_(made.quantizer.weight)
    folder = tempfile.TemporaryDirectory()
    made.save_pretrained(folder.name)
    return folder


@functools.cache
def discriminator(dtype: torch.dtype) -> Discriminator:
    """A small one, for terms that ask for its judgement."""
    torch.manual_seed(5)
    return widen(PLAIN.build(3, (SIDE, SIDE))).to(dtype)


def near(images: Tensor) -> Tensor:
    """The images and some noise."""
    return images + 0.2 * torch.randn_like(images)


def unlike(images: Tensor) -> Tensor:
    """Each image's neighbour in black and white."""
    return images.roll(1, 0).sign() * 0.9


@dataclass(frozen=True)
class Case:
    """A term, its formula, and the outputs that it reads."""

    name: str
    config: Callable[[], Any]
    """makes its config"""
    formula: Callable[[Any, Record], Tensor]
    """(term, record) -> its value; weights and record are float64"""
    slope: Callable[[Any, Record, Any, Record], Tensor] | None = None
    """what its gradient is the slope of, where that is not the value: of term and record, and of both as they began"""
    output: Callable[[Tensor], Tensor] = near
    """images -> a decoder's output"""
    perfect: Callable[[Tensor], Tensor] = torch.clone
    """images -> the output of which they are the reconstructions"""
    overrides: tuple[str, ...] = ()
    """of the tokenizer around it"""
    missing: str | None = None
    """why it cannot be tried here"""
    exempt: dict[str, str] = field(default_factory=dict)
    """law -> one line: why it does not apply"""

    def tokenizer(self) -> tvq.Tokenizer:
        return tokenizer(*self.overrides)

    def build(self) -> Term:
        around = self.tokenizer()
        torch.manual_seed(4)
        return self.config().build(around)

    def record(
        self,
        rows: slice = slice(None),
        dtype: torch.dtype = torch.float32,
        output: Callable[[Tensor], Tensor] | None = None,
        black: bool = False,
    ) -> Record:
        """Four images, noise or black ones, with keys, labels and captions, their features, and an output."""
        around = self.tokenizer()
        torch.manual_seed(1)
        images = -torch.ones(4, 3, SIDE, SIDE) if black else torch.rand(4, 3, SIDE, SIDE) * 1.8 - 0.9
        with torch.no_grad():
            seen = around(images, render=False)
        batch = Batch(
            images[rows].to(dtype),
            ["a", "b", "c", "d"][rows],
            (torch.arange(4) % LABELS)[rows],
            [(f"picture {i}",) for i in range(4)][rows],
        )
        quantized = seen.quantized._replace(
            features=seen.quantized.features[rows].to(dtype), codes=seen.quantized.codes[rows], losses={}, stats={}
        )
        return Record(
            batch,
            (output or self.output)(images)[rows].to(dtype),
            features=seen.features[rows].to(dtype),
            quantized=quantized,
            tokenizer=around,
            discriminator=discriminator(dtype),
        )


def unit64(features: Tensor, eps: float) -> Tensor:
    """Vectors along the channels over their length."""
    return features / (features.square().sum(1, keepdim=True) + eps).sqrt()


def huber64(term: Huber, record: Record) -> Tensor:
    """The parabola inside `delta`, the lines outside."""
    apart, delta = (record.images - record.reconstructions).abs(), term.delta
    return torch.where(apart <= delta, apart**2 / 2, delta * (apart - delta / 2)).mean()


def laplace64(term: Any, record: Record) -> Tensor:
    """-ln of the density, from its definition."""
    mu, log_b = record.output.chunk(2, dim=1)
    x, b = record.pixels, log_b.exp()
    density = torch.exp(-(torch.log(x / (1 - x)) - mu).abs() / b) / (2 * b * x * (1 - x))
    return -density.log().mean()


def lpips64(term: Lpips, record: Record) -> Tensor:
    """Layer by layer: unit features, squared differences weighted by the heads, means over positions."""
    network, total = term.network, torch.zeros((), dtype=torch.float64)
    sides = [network.trunk(network.scaling(images)) for images in (record.images, record.reconstructions)]
    for i, (a, b) in enumerate(zip(*sides, strict=True)):
        squared = (unit64(a, 1e-20) - unit64(b, 1e-20)).square()
        total = total + (squared * network.get_buffer(f"head{i}").view(1, -1, 1, 1)).sum(1).mean()
    return total


def perceptual64(term: Perceptual, record: Record) -> Tensor:
    """The mean over stages of the mean squared distance of unit features."""
    sides = [term.network.stages(images, term.stages) for images in (record.images, record.reconstructions)]
    pairs = [(unit64(a, 1e-6) - unit64(b, 1e-6)).square().sum(1).mean() for a, b in zip(*sides, strict=True)]
    return torch.stack(pairs).mean()


def gram64(term: Gram, record: Record) -> Tensor:
    """The mean over stages of the squared difference of channel products, summed over pairs of channels."""
    total = torch.zeros((), dtype=torch.float64)
    sides = [term.network.stages(images, term.stages) for images in (record.images, record.reconstructions)]
    for a, b in zip(*sides, strict=True):
        products = [torch.einsum("bchw,bdhw->bcd", f, f) / f[0].numel() for f in (a, b)]
        total = total + (products[0] - products[1]).square().sum((1, 2)).mean()
    return total / len(term.stages)


def logits64(term: ClassifierLogits, record: Record) -> Tensor:
    """The mean squared difference of what stands behind the classifier, its last layer done by hand."""
    model, sides = term.network.model, []
    for images in (record.images, record.reconstructions):
        head = term.network.layers(images, ["head"])["head"]
        sides.append(head @ model.classifier.weight.T + model.classifier.bias)
    return (sides[0] - sides[1]).square().mean()


def spectra64(record: Record) -> Tensor:
    """Squared difference of the spectra of images on [0, 1]."""
    sides = [torch.fft.fft2(image / 2) / SIDE for image in (record.images, record.reconstructions)]
    return (sides[0] - sides[1]).abs().square()


def focal64(term: FocalFrequency, record: Record, began: Record | None = None) -> Tensor:
    """Each frequency weighted by its difference, over the largest one, both as they were where the record `began`."""
    focus = spectra64(began or record).sqrt() ** term.alpha
    return (focus / focus.amax((2, 3), keepdim=True) * spectra64(record)).mean()


def matching64(term: Any, record: Record) -> Tensor:
    """The mean over layers of the mean squared difference of the batches' mean features."""
    judge = discriminator(torch.float64)
    sides = [judge(images).features for images in (record.images, record.reconstructions)]
    return torch.stack([(a.mean(0) - b.mean(0)).square().mean() for a, b in zip(*sides, strict=True)]).mean()


def alignment64(term: FeatureAlignment, record: Record) -> Tensor:
    """Position by position, and pair by pair of positions."""
    projected = term.projections[0](record.features)
    (target,) = term.network.stages(record.images, [term.config.stage])
    z, f = (unit64(side, 0).flatten(2) for side in (projected, resized(target, projected.shape[-2:])))
    loss = (1 - term.config.cosine_margin - (z * f).sum(1)).clamp_min(0).mean()
    apart = (torch.einsum("bci,bcj->bij", z, z) - torch.einsum("bci,bcj->bij", f, f)).abs()
    return loss + term.config.matrix_weight * (apart - term.config.matrix_margin).clamp_min(0).mean()


def attribute64(term: AttributeReversal, record: Record) -> Tensor:
    """Minus the log of the share that each image's label has."""
    vectors = record.features.permute(0, 2, 3, 1) @ term.hidden[0].weight.T + term.hidden[0].bias
    pooled = (vectors * vectors.sigmoid()).mean((1, 2))
    shares = (pooled @ term.head.weight.T + term.head.bias).softmax(1)
    return -shares.gather(1, record.batch.labels[:, None]).log().mean()


def reversed64(term: AttributeReversal, record: Record, was: AttributeReversal, began: Record) -> Tensor:
    """The classifier descends on the features as they were, the features ascend on the classifier as it was."""
    return attribute64(term, began) - 0.6 * attribute64(was, record)


def encoded64(record: Record) -> Tensor:
    """Features of the clamped reconstructions, by a copy of the encoder in float64."""
    return copy.deepcopy(record.tokenizer.encoder).double()(record.reconstructions.clamp(-1, 1))


def features64(term: Any, record: Record) -> Tensor:
    """The mean squared difference from the image's features."""
    return (encoded64(record) - record.features).square().mean()


def features64_held(term: Any, record: Record, was: Any, began: Record) -> Tensor:
    """The same of the image's features as they were, for they are what is aimed at."""
    return (encoded64(record) - began.features).square().mean()


def vectors64(record: Record) -> Tensor:
    """Vectors of the codes of the reconstructions."""
    quantizer = copy.deepcopy(record.tokenizer.quantizer).double()
    return quantizer.lookup(quantizer.encode(encoded64(record)))


def codes64(term: Any, record: Record) -> Tensor:
    """The mean squared difference of the vectors of the codes."""
    return (vectors64(record) - record.quantized.features).square().mean()


def straight64(term: Any, record: Record, was: Any, began: Record) -> Tensor:
    """The same of vectors that move as the unit features do, which is what the straight-through estimator says."""
    moved = vectors64(began) + unit64(encoded64(record), 0) - unit64(encoded64(began), 0)
    return (moved - record.quantized.features).square().mean()


def proxy64(term: ProxyCodes, record: Record) -> Tensor:
    """Minus the log of the share that the proxy's code has."""
    shares = record.output.softmax(1).gather(1, term.codes(record.images)[:, None])
    return -shares.log().mean()


_AT_FEATURES = {"zero": "it looks at the encoder's features, not at the reconstruction"}
_NO_BACKBONE = {"once": "it has no backbone: nothing to pass through"}

TERMS = Role(
    "term",
    [
        Case("l1", L1Config, lambda term, r: (r.images - r.reconstructions).abs().mean(), exempt=_NO_BACKBONE),
        Case("l2", L2Config, lambda term, r: (r.images - r.reconstructions).square().mean(), exempt=_NO_BACKBONE),
        Case("huber", HuberConfig, huber64, exempt=_NO_BACKBONE),
        Case(
            "logit-laplace",
            LogitLaplaceConfig,
            laplace64,
            output=lambda images: 0.5 * torch.randn(len(images), 6, SIDE, SIDE),
            overrides=tuple(PIXELS),
            exempt={**_NO_BACKBONE, "zero": "minus the log of a density, which has no least value of 0"},
        ),
        Case(
            "lpips",
            lambda: LpipsConfig(net="squeeze", trunk=str(TRUNK)),
            lpips64,
            missing=None if TRUNK.exists() else "needs ../shared, which a clone does not have",
        ),
        Case("perceptual", PerceptualConfig, perceptual64),
        Case(
            "perceptual-stages", lambda: PerceptualConfig(backbone="tf_efficientnet_lite0", stages=(1, 3)), perceptual64
        ),
        Case("gram", lambda: GramConfig(backbone="tf_efficientnet_lite0", stages=(0, 2)), gram64),
        Case("classifier-logits", lambda: ClassifierLogitsConfig(backbone="tf_efficientnet_lite0"), logits64),
        Case(
            "focal-frequency",
            lambda: FocalFrequencyConfig(alpha=1.5),
            focal64,
            lambda term, r, was, began: focal64(term, r, began),
            exempt=_NO_BACKBONE,
        ),
        Case("feature-matching", FeatureMatchingConfig, matching64, exempt=_NO_BACKBONE),
        Case("code-recovery", CodeRecoveryConfig, features64, features64_held, output=unlike, exempt=_NO_BACKBONE),
        Case(
            "code-recovery-codes",
            lambda: CodeRecoveryConfig(target="codes"),
            codes64,
            straight64,
            output=unlike,
            exempt={
                **_NO_BACKBONE,
                "precision": "a code that rounding moves moves the loss by a whole step",
            },
        ),
        Case(
            "feature-alignment",
            lambda: FeatureAlignmentConfig(backbone="tf_efficientnet_lite0", stage=2, projection="mlp", hidden=12),
            alignment64,
            exempt=_AT_FEATURES,
        ),
        Case(
            "feature-alignment-margins",
            lambda: FeatureAlignmentConfig(
                backbone="tf_efficientnet_lite0", stage=1, cosine_margin=0.5, matrix_weight=0.7, matrix_margin=0.1
            ),
            alignment64,
            exempt=_AT_FEATURES,
        ),
        Case(
            "attribute-reversal",
            lambda: AttributeReversalConfig(num_classes=LABELS, reversal=0.6, width=6),
            attribute64,
            reversed64,
            exempt={**_NO_BACKBONE, **_AT_FEATURES},
        ),
        Case(
            "proxy-codes",
            lambda: ProxyCodesConfig(tokenizer=proxy().name),
            proxy64,
            output=lambda images: torch.randn(len(images), 12, 8, 8),
            exempt={"zero": "a cross-entropy is 0 for infinite logits only"},
        ),
    ],
    {
        "value": "equals its formula in float64",
        "gradient": "its gradient, at the leaves and at each of its parameters, is that of finite differences",
        "zero": "zero, with gradient zero, where image and reconstruction agree",
        "precision": "float32 and near float32's value inside bf16 autocast",
        "once": "images pass a backbone once a step, reconstructions once a term",
        "processes": "gradients of two processes are those of one",
        "state": "its config can be written and read; what it trains is saved and loaded, frozen weights are not",
    },
    "test_terms.py",
)
