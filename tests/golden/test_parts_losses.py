"""PatchGAN, objectives, adaptive weight, R1 and LPIPS against recorded tensors of the references."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.conftest import shared
from tokenizers_vq.discriminators.base import Discriminator, Judgement
from tokenizers_vq.discriminators.patchgan import PatchGAN, PatchGANConfig
from tokenizers_vq.losses.objectives import (
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    Objective,
    adaptive_weight,
)
from tokenizers_vq.losses.perceptual import Lpips, LpipsNetwork
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers import R1, R2, GradientPenalty, LeCam


class Case:
    """One recorded case: tensors, weights, and a comparison within the tolerance of its `meta.json`."""

    def __init__(self, part: str) -> None:
        folder = shared(f"golden/parts/{part}")
        self.meta = json.loads((folder / "meta.json").read_text())
        self.io = load_file(folder / "io.safetensors")
        weights = folder / "weights.safetensors"
        self.weights = load_file(weights) if weights.exists() else {}

    def equal(self, name: str, value: Tensor, expected: Tensor | None = None) -> None:
        expected = self.io[name] if expected is None else expected
        tolerance = self.meta["tolerance"].get(name, self.meta["tolerance"].get("all"))
        assert tolerance is not None, name
        error = (value.detach().reshape(expected.shape) - expected).abs().max().item()
        assert error <= tolerance, f"{name}: off by {error:.3g}, tolerance {tolerance:.3g}"


def our_patchgan_key(key: str, layers: int) -> str:
    """taming's `main.N.*`: convolution, activation, then triples of convolution, norm, activation, then the head."""
    match = re.fullmatch(r"main\.(\d+)\.(.+)", key)
    assert match
    index, rest = int(match[1]), match[2]
    if index == 0:
        return f"blocks.0.0.{rest}"
    if index == 2 + 3 * layers:
        return f"head.{rest}"
    return f"blocks.{(index - 2) // 3 + 1}.{(index - 2) % 3}.{rest}"


def patchgan(weights: dict[str, Tensor], width: int, layers: int) -> PatchGAN:
    model = PatchGAN(3, width=width, layers=layers)
    model.load_state_dict({our_patchgan_key(key, layers): value for key, value in weights.items()}, strict=True)
    return model


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["layers2", "layers3"])
def test_patchgan(name: str, mode: str) -> None:
    case = Case(f"patchgan/{name}")
    layers = case.meta["arguments"]["n_layers"]
    model = patchgan(case.weights, case.meta["arguments"]["ndf"], layers).train(mode == "train")
    assert sum(p.numel() for p in model.parameters()) == case.meta["n_parameters"]
    images = case.io["input"].requires_grad_()
    logits = model(images).logits[0]
    case.equal(f"logits_{mode}", logits)
    (logits * case.io["upstream"]).sum().backward()
    case.equal(f"input_grad_{mode}", images.grad)
    for key in ("main.0.weight", f"main.{2 + 3 * layers}.weight"):
        case.equal(f"grad_{key}_{mode}", model.get_parameter(our_patchgan_key(key, layers)).grad)
    if mode == "train":
        running = [key for key in case.io if key.startswith("after_train.")]
        assert len(running) == 2 * layers
        for key in running:
            case.equal(key, model.get_buffer(our_patchgan_key(key.removeprefix("after_train."), layers)))


# The same losses stand in the repositories with and without a factor 1/2 on the discriminator's: ours times `scale`.
OBJECTIVES: list[tuple[str, Objective, str, float]] = [
    ("taming.hinge_d", Hinge(), "d", 1.0),
    ("taming.hinge_g", Hinge(), "g", 1.0),
    ("titok.hinge_d", Hinge(), "d", 1.0),
    ("enhancing.hinge_d", Hinge(), "d", 1.0),
    ("enhancing.hinge_g", Hinge(), "g", 1.0),
    ("llamagen.hinge_g", Hinge(), "g", 1.0),
    ("stylegan2.logistic_d", NonSaturating(), "d", 1.0),
    ("stylegan2.nonsaturating_g", NonSaturating(), "g", 1.0),
    ("taming.vanilla_d", NonSaturating(), "d", 0.5),
    ("enhancing.vanilla_d", NonSaturating(), "d", 0.5),
    ("enhancing.vanilla_g", NonSaturating(), "g", 1.0),
    ("taming.vanilla_d", Minimax(), "d", 0.5),
    ("stylegan2.logistic_d", Minimax(), "d", 1.0),
    ("enhancing.least_square_d", LeastSquares(targets=(-1.0, 1.0, 0.0)), "d", 1.0),
    ("enhancing.least_square_g", LeastSquares(targets=(-1.0, 1.0, 0.0)), "g", 2.0),
]


@pytest.mark.parametrize("logits", ["one-logit", "patch-maps"])
@pytest.mark.parametrize(
    ("name", "objective", "side", "scale"), OBJECTIVES, ids=[f"{row[0]}-{row[1].kind}" for row in OBJECTIVES]
)
def test_objective(name: str, objective: Objective, side: str, scale: float, logits: str) -> None:
    case = Case(f"adversarial-losses/{logits}")
    real, fake = (case.io[f"logits_{which}"].requires_grad_() for which in ("real", "fake"))
    judgements = [Judgement([tensor], [], {}) for tensor in (real, fake)]
    record = Record(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    record.real, record.fake = judgements
    loss = objective.discriminator(*judgements) if side == "d" else objective.generator(record)
    (scale * loss).backward()
    case.equal(name, scale * loss)
    for which, tensor in (("real", real), ("fake", fake)):
        gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        expected = case.io.get(f"grad_{which}.{name}", torch.zeros_like(tensor))
        case.equal(f"grad_{which}.{name}", gradient, expected)


@pytest.mark.parametrize("name", ["hinge", "vanilla-24x40"])
def test_adaptive_weight(name: str) -> None:
    case = Case(f"adaptive-weight/{name}")
    arguments, io = case.meta["arguments"], case.io
    hinge = arguments["disc_loss"] == "hinge"
    channels = io["latents"].shape[1]
    hidden = case.weights["decoder.0.weight"].shape[0]
    decoder = nn.Sequential(nn.Conv2d(channels, hidden, 3, padding=1), nn.SiLU(), nn.Conv2d(hidden, 3, 3, padding=1))
    decoder.load_state_dict(
        {k.removeprefix("decoder."): v for k, v in case.weights.items() if k.startswith("decoder.")}
    )
    reference = {k.removeprefix("discriminator."): v for k, v in case.weights.items() if k.startswith("discriminator.")}
    discriminator = patchgan(reference, 4, 2)
    output = decoder(io["latents"])
    case.equal("reconstructions", output)

    record = Record(io["target"], output, discriminator=discriminator)
    nll = (record.images - record.reconstructions).abs().mean()
    # taming's generator loss is the hinge's whatever `disc_loss` says.
    g_loss = Hinge().generator(record)
    case.equal("nll_loss", nll)
    case.equal("g_loss", g_loss)
    at_output = [torch.autograd.grad(loss, record.output, retain_graph=True)[0] for loss in (nll, g_loss)]
    last = decoder[2].weight
    g_rec, g_adv = (torch.autograd.grad(output, last, gradient, retain_graph=True)[0] for gradient in at_output)
    case.equal("nll_grad", g_rec)
    case.equal("g_grad", g_adv)
    weight = arguments["disc_weight"] * adaptive_weight(g_rec, g_adv)
    case.equal("adaptive_weight", weight)
    clamped = arguments["disc_weight"] * adaptive_weight(g_rec * 1e6, g_adv * 1e-3)
    case.equal("adaptive_weight_nll_times_1e6", clamped)
    case.equal("adaptive_weight_g_times_0", arguments["disc_weight"] * adaptive_weight(g_rec, g_adv * 0))

    quantizer_loss = arguments["codebook_weight"] * io["codebook_loss"]
    case.equal("total_before_start", nll + quantizer_loss)
    case.equal("total_after_start", nll + weight * g_loss + quantizer_loss)
    (total_grad,) = torch.autograd.grad(output, last, at_output[0] + weight * at_output[1])
    case.equal("total_grad_after_start", total_grad)
    with torch.no_grad():
        real, fake = discriminator(io["target"]), discriminator(output)
    d_loss = Hinge().discriminator(real, fake) if hinge else 0.5 * NonSaturating().discriminator(real, fake)
    case.equal("d_loss_after_start", d_loss)


class Critic(Discriminator):
    def __init__(self, channels: int, features: int) -> None:
        super().__init__(PatchGANConfig(), channels, (16, 16))
        convs = (nn.Conv2d(channels, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 12, 3, 2, 1), nn.Tanh())
        self.network = nn.Sequential(*convs, nn.Flatten(), nn.Linear(features, 1))

    def forward(self, *inputs: Any) -> Judgement:
        return Judgement([self.network(inputs[0])], [], {})


@pytest.mark.parametrize("regulariser", ["r1", "r2", "wgan_gp"])
@pytest.mark.parametrize("name", ["grey-12x20", "rgb-16"])
def test_penalties_on_slopes(name: str, regulariser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(f"gradient-penalty/{name}")
    real, fake = case.io["real"], case.io["fake"]
    critic = Critic(real.shape[1], case.weights["5.weight"].shape[1])
    critic.network.load_state_dict(case.weights)
    record = Record(real, fake, discriminator=critic)
    for which, judgement in (("real", record.real), ("fake", record.fake)):
        case.equal(f"critic_{which}", judgement.logits[0])
    # R1 and R2 are recorded without the 1/2 of gamma / 2.
    part, factor = {
        "r1": (R1(), 2.0),
        "r2": (R2(), 2.0),
        "wgan_gp": (GradientPenalty(), case.meta["arguments"]["LAMBDA"]),
    }[regulariser]
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: case.io["alpha"].view(shape))
    penalty = factor * part(record, critic, record.real, record.fake)
    penalty.backward()
    case.equal(regulariser, penalty)
    for key in ("0.weight", "2.weight", "5.weight"):
        case.equal(f"{regulariser}_grad.{key}", critic.network.get_parameter(key).grad)


@pytest.mark.parametrize("name", ["decay-0.9", "decay-0.999"])
def test_lecam(name: str) -> None:
    """TiTok's: the batch's means against averages of the steps before."""
    case = Case(f"lecam/{name}")
    arguments = case.meta["arguments"]
    weight = arguments["lecam_regularization_weight"]
    lecam, nothing = LeCam(decay=arguments["lecam_ema_decay"], compare="means"), Critic(3, 12)
    found: dict[str, list[Tensor]] = {key: [] for key in case.meta["tolerance"]}
    for real, fake in zip(case.io["logits_real"], case.io["logits_fake"], strict=True):
        real.requires_grad_()
        judgements = Judgement([real], [], {}), Judgement([fake], [], {})
        record = Record(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
        value, hinge = weight * lecam(record, nothing, *judgements), Hinge().discriminator(*judgements)
        (gradient,) = torch.autograd.grad(value, real, allow_unused=True)
        lecam.after_step(nothing)
        figures = {"lecam": value, "hinge_d": hinge, "total_d": value + hinge}
        figures |= {"ema_real": lecam.real_average.clone(), "ema_fake": lecam.fake_average.clone()}
        figures |= {"grad_real": torch.zeros_like(real) if gradient is None else gradient}
        for key, figure in figures.items():
            found[key].append(figure.detach())
    for key, steps in found.items():
        case.equal(key, torch.stack(steps).reshape(case.io[key].shape))


def test_lpips_squeeze() -> None:
    case = Case("lpips-squeeze/photos-64")
    trunk = shared("data/backbones/squeezenet1_1_fp16.pth")
    network = LpipsNetwork("squeeze", trunk)
    other = case.io["input_other"].requires_grad_()
    layers = network.distance(network.features(case.io["input"]), network.features(other))
    case.equal("per_layer", layers)
    case.equal("lpips", layers.sum(dim=1))
    layers.sum().backward()
    case.equal("input_other_grad", other.grad)


def test_lpips_term_is_the_mean_over_the_batch() -> None:
    case = Case("lpips-squeeze/photos-64")
    term = Lpips(net="squeeze", trunk=str(shared("data/backbones/squeezenet1_1_fp16.pth")))
    record = Record(case.io["input"], case.io["input_other"])
    loss = term(record)
    case.equal("lpips", loss.detach(), case.io["lpips"].mean())
    (gradient,) = torch.autograd.grad(loss, record.output)
    case.equal("input_other_grad", gradient * len(gradient))
