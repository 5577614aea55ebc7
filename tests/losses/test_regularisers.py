"""Regularisers on critics whose slopes are known; values are compared with references in tests/golden."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.laws.adversaries import LABELS, PLAIN, make_adversary, make_record
from tokenizers_vq.batch import Batch
from tokenizers_vq.config import ConfigError
from tokenizers_vq.discriminators import (
    AugmentedConfig,
    ClassHeadConfig,
    PairConfig,
    PatchGANConfig,
    ProjectionConfig,
    SeveralConfig,
    StyleGAN2Config,
)
from tokenizers_vq.discriminators.base import Discriminator, Judgement
from tokenizers_vq.losses.objectives import Wasserstein
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers import (
    R1,
    R2,
    GradientPenalty,
    GradientPenaltyConfig,
    HistoricalAveraging,
    LeCam,
    MatchingAware,
    MatchingAwareConfig,
    Orthogonal,
    R1Config,
    R2Config,
    Regulariser,
    WeightClippingConfig,
)


class Linear(Discriminator):
    """Two scales whose gradient is known."""

    def __init__(self) -> None:
        super().__init__(PatchGANConfig(), 3, (2, 2))
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, *inputs: Any) -> Judgement:
        return Judgement([self.scale * inputs[0].sum((1, 2, 3)), inputs[0].sum((2, 3))], [], {})


def test_r1_sums_the_scales_and_reaches_the_weights() -> None:
    images = torch.rand(4, 3, 2, 2)
    discriminator = Linear()
    record = Record(images, images, discriminator=discriminator)
    penalty = R1()(record, discriminator, record.real, record.fake)
    assert penalty.item() == pytest.approx(0.5 * (2 + 1) ** 2 * 12)
    penalty.backward()
    assert discriminator.scale.grad is not None
    assert discriminator.scale.grad.item() == pytest.approx((2 + 1) * 12)
    assert images.grad is None


def test_lecam_of_the_paper_takes_each_logit() -> None:
    """Against averages that were set by hand; the averages move after the step, by the mean of its micro-batches."""
    lecam, record = LeCam(decay=0.75), Record(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))
    lecam.real_average.fill_(2.0)
    lecam.fake_average.fill_(-1.0)
    real, fake = torch.tensor([[1.0], [-3.0]]), torch.tensor([[0.0], [4.0]])
    value = lecam(record, Linear(), Judgement([real], [], {}), Judgement([fake], [], {}))
    assert value.item() == ((1 + 1) ** 2 + 0) / 2 + ((2 - 0) ** 2 + 0) / 2
    assert lecam.real_average == 2 and lecam.fake_average == -1
    lecam(record, Linear(), Judgement([real + 4], [], {}), Judgement([fake], [], {}))
    lecam.after_step(Linear())
    assert lecam.real_average.item() == pytest.approx(0.75 * 2 + 0.25 * 1)  # means -1 and 3
    assert lecam.fake_average.item() == pytest.approx(0.75 * -1 + 0.25 * 2)
    lecam.after_step(Linear())  # without a judgement nothing moves
    assert lecam.real_average.item() == pytest.approx(1.75)


class Critic(Discriminator):
    """`d . x + x A x / 2` of an image x of 12 numbers: the slope is `d + A x`; as `positions` equal logits."""

    def __init__(self, curved: bool, positions: int = 1) -> None:
        super().__init__(PatchGANConfig(), 3, (2, 2))
        torch.manual_seed(1)
        half = torch.randn(12, 12)
        self.positions = positions
        self.direction = nn.Parameter(torch.randn(12))
        self.form = nn.Parameter((half + half.T) * curved)

    def forward(self, *inputs: Any) -> Judgement:
        x = inputs[0].flatten(1)
        logits = x @ self.direction + ((x @ self.form) * x).sum(1) / 2
        return Judgement([logits[:, None].expand(-1, self.positions)], [], {})

    def slopes(self, images: Tensor) -> Tensor:
        return self.direction + images.flatten(1) @ self.form


def penalty_on(critic: Critic, regulariser: Regulariser) -> tuple[Tensor, Record]:
    torch.manual_seed(2)
    record = Record(torch.rand(4, 3, 2, 2), torch.rand(4, 3, 2, 2), discriminator=critic)
    torch.manual_seed(3)
    return regulariser(record, critic, record.real, record.fake), record


@pytest.mark.parametrize("curved", [False, True], ids=["linear", "quadratic"])
def test_penalties_on_critics_of_known_slope(curved: bool) -> None:
    """Values and, where the slope is the same everywhere, the gradients at it."""
    for regulariser, where in ((R1(), "images"), (R2(), "output")):
        critic = Critic(curved)
        value, record = penalty_on(critic, regulariser)
        slopes = critic.slopes(getattr(record, where)).detach()
        assert value.item() == pytest.approx(0.5 * slopes.square().sum(1).mean().item(), rel=1e-5)
        value.backward()
        assert critic.direction.grad is not None
        torch.testing.assert_close(critic.direction.grad, slopes.mean(0))
    for target in (1.0, 0.0, 2.5):
        critic = Critic(curved)
        value, record = penalty_on(critic, GradientPenalty(target=target))
        torch.manual_seed(3)
        share = torch.rand(4, 1, 1, 1)
        slopes = critic.slopes(share * record.images + (1 - share) * record.output).detach()
        lengths = slopes.norm(dim=1, keepdim=True)
        assert value.item() == pytest.approx((lengths - target).square().mean().item(), rel=1e-5)
        value.backward()
        assert critic.direction.grad is not None
        torch.testing.assert_close(critic.direction.grad, (2 * (lengths - target) * slopes / lengths).mean(0))


def test_the_gradient_penalty_is_zero_at_slope_one_however_many_logits() -> None:
    """Of the mean logit, as the objective has it: a map of patches is not held to a smaller slope than one logit."""
    for positions in (1, 9):
        critic = Critic(False, positions)
        with torch.no_grad():
            critic.direction.div_(critic.direction.norm())
        value, _ = penalty_on(critic, GradientPenalty())
        assert value.item() == pytest.approx(0, abs=1e-10)


def test_a_flat_critic_has_a_finite_penalty() -> None:
    critic = Critic(False)
    with torch.no_grad():
        critic.direction.zero_()
    value, _ = penalty_on(critic, GradientPenalty())
    value.backward()
    assert value.item() == 1 and critic.direction.grad is not None and critic.direction.grad.isfinite().all()


class Attending(Discriminator):
    """Self-attention over pixels by torch's fused kernel, and one logit."""

    def __init__(self) -> None:
        super().__init__(PatchGANConfig(), 3, (4, 4))
        self.lift, self.head = nn.Linear(3, 24), nn.Linear(8, 1)
        self.dtypes: list[torch.dtype] = []

    def forward(self, *inputs: Any) -> Judgement:
        q, k, v = self.lift(inputs[0].flatten(2).mT).unflatten(2, (3, 1, 8)).permute(2, 0, 3, 1, 4)
        self.dtypes.append(q.dtype)
        return Judgement([self.head(F.scaled_dot_product_attention(q, k, v).mean((1, 2)))], [], {})


@pytest.mark.parametrize("regulariser", [R1(), R2(), GradientPenalty()], ids=lambda regulariser: regulariser.name)
def test_penalties_are_float32_and_take_attention(regulariser: Regulariser) -> None:
    """A fused kernel has no second derivative; in bf16 autocast the penalty is float32's to the last bit."""
    torch.manual_seed(0)
    critic, found = Attending(), []
    images, output = torch.rand(2, 8, 3, 4, 4) - 0.5
    for half in (False, True):
        record = Record(images, output.bfloat16().float(), discriminator=critic)
        nothing = Judgement([], [], {})
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = regulariser(record, critic, nothing, nothing)
        found.append((value, torch.autograd.grad(value, critic.lift.weight)[0]))
    assert set(critic.dtypes) == {torch.float32}
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][1].abs().sum() > 0


def test_clipped_weights_stay_within_the_limit_and_their_share_is_told() -> None:
    adversary = make_adversary(objective=Wasserstein(), regularisers=(WeightClippingConfig(limit=0.05, every=2),))
    weights = torch.cat([p.detach().flatten() for p in adversary.discriminator.parameters()])
    beyond = (weights.abs() >= 0.05).float().mean()
    for step, told in ((1, None), (2, beyond), (4, beyond)):
        record = make_record(adversary.discriminator)
        record.step = step
        loss, figures = adversary.own_loss(adversary.discriminator, record)
        assert torch.equal(loss.detach(), figures["discriminator"]), "a figure, no loss"
        assert figures["adversary/gap"].item() == pytest.approx(-loss.item(), rel=1e-5)
        assert (figures.get("adversary/clipped") is None) == (told is None)
        assert told is None or figures["adversary/clipped"] == told, "at the limit counts"
        adversary.after_step()
        largest = max(p.abs().max().item() for p in adversary.discriminator.parameters())
        assert (largest > 0.06) if told is None else largest == pytest.approx(0.05)
    assert 0 < beyond < 1


def test_orthogonality_is_zero_on_orthogonal_filters_of_any_length() -> None:
    adversary = make_adversary()
    record, nothing = make_record(adversary.discriminator), Judgement([], [], {})
    assert Orthogonal()(record, adversary.discriminator, nothing, nothing) > 0.01
    for parameter in adversary.discriminator.parameters():
        if parameter.ndim > 1:
            nn.init.orthogonal_(parameter)
            with torch.no_grad():
                parameter.mul_(torch.arange(1, len(parameter) + 1).view(-1, 1, 1, 1))
    assert Orthogonal()(record, adversary.discriminator, nothing, nothing).item() == pytest.approx(0, abs=1e-8)


def test_orthogonality_by_hand_and_of_weights_as_they_are_used() -> None:
    nothing, record = Judgement([], [], {}), Record(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))
    network = Linear()
    network.layer = nn.Linear(2, 3)
    with torch.no_grad():
        network.layer.weight.copy_(torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]]))
    # Products of filters: 3, 0 and 8, each pair counted from both sides.
    assert Orthogonal()(record, network, nothing, nothing) == 2 * (9 + 0 + 64)
    scaled = StyleGAN2Config(width=1 / 64).build(3, (8, 8))
    value = Orthogonal()(record, scaled, nothing, nothing)
    layers = [m for m in scaled.modules() if hasattr(m, "scale")]
    used = [layer.weight.detach().flatten(1) * layer.scale for layer in layers]
    expected = sum(float(((w @ w.T) * (1 - torch.eye(len(w)))).square().sum()) for w in used)
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_the_historical_average_is_the_mean_of_the_weights_after_each_step() -> None:
    network, nothing = Linear(), Judgement([], [], {})
    record, history = Record(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)), HistoricalAveraging(1)
    assert history(record, network, nothing, nothing) == 0, "no step was yet"
    for value in (2.0, 4.0, 9.0):
        network.scale.data.fill_(value)
        history.after_step(network)
    assert history.average.item() == pytest.approx(5) and history.steps == 3
    distance = history(record, network, nothing, nothing)
    distance.backward()
    assert distance.item() == pytest.approx(16)
    assert network.scale.grad is not None and network.scale.grad.item() == pytest.approx(8)


LABELLED = ProjectionConfig(discriminator=PLAIN, num_classes=LABELS)
AUGMENTED = AugmentedConfig(discriminator=LABELLED, p=1.0)


@pytest.mark.parametrize("config", [LABELLED, AUGMENTED], ids=lambda config: config.kind)
def test_an_image_whose_neighbour_has_the_same_label_is_no_wrong_pair(config: Any) -> None:
    discriminator = config.build(3, (32, 32)).eval()  # in eval mode nothing is augmented, though it is drawn
    batch = make_record(discriminator).batch

    def value(*labels: int) -> float:
        record = Record(batch._replace(labels=torch.tensor(labels)), batch.images, discriminator=discriminator)
        return MatchingAware(Wasserstein())(record, discriminator, record.real, record.fake).item()

    def mean_logit(rows: list[int], labels: list[int]) -> float:
        inner = discriminator if config is LABELLED else discriminator.inner
        return inner(batch.images[rows], torch.tensor(labels)).logits[0].mean().item()

    own, alike = [0, 0, 0, 1, 1, 2, 2, 2], [3] * 8
    wrong = mean_logit([0, 3, 5], [2, 0, 1])
    assert value(*own) == pytest.approx(wrong - mean_logit(list(range(8)), own), abs=1e-5)
    assert value(*alike) == 0


@pytest.mark.parametrize("penalty", [GradientPenaltyConfig(), R1Config(), R2Config()], ids=lambda config: config.kind)
@pytest.mark.parametrize("norm", ["batch", "virtual"])
def test_a_penalty_on_slopes_beside_a_norm_over_the_batch_is_refused(norm: str, penalty: Any) -> None:
    mixing = PatchGANConfig(width=4, layers=2, norm=norm)
    around = {
        "norm": mixing,
        "discriminator.norm": PairConfig(discriminator=mixing),
        "discriminators.1.norm": SeveralConfig(discriminators=(PLAIN, mixing)),
    }
    for path, discriminator in around.items():
        with pytest.raises(ConfigError) as error:
            make_adversary(discriminator=discriminator, regularisers=(penalty,))
        assert str(error.value) == (
            f"adversary.discriminator.{path}: {penalty.kind} is about each image's own logits, which the norm "
            f"'{norm}' mixes over the batch: give adversary.discriminator.{path}=none or another norm"
        )


def test_matching_needs_a_condition_and_two_images() -> None:
    head = ClassHeadConfig(discriminator=PLAIN, num_classes=LABELS)
    without = (PLAIN, head, AugmentedConfig(discriminator=PLAIN), SeveralConfig(discriminators=(PLAIN, head)))
    for config in without:
        with pytest.raises(ConfigError) as error:
            make_adversary(discriminator=config, regularisers=(MatchingAwareConfig(),))
        assert str(error.value) == (
            f"adversary.discriminator: matching_aware gives images the condition of others, and {config.kind} looks at "
            "none: take it out of adversary.regularisers, or choose a discriminator with a condition"
        )
    adversary = make_adversary(discriminator=LABELLED, regularisers=(MatchingAwareConfig(),))
    with pytest.raises(
        ValueError,
        match=r"^adversary\.regularisers: matching_aware needs two images a micro-batch, .* lower accumulate$",
    ):
        adversary.check(Batch(torch.zeros(1, 3, 32, 32), ["a"], torch.tensor([0])))


def test_a_record_of_some_images_has_all_that_is_theirs() -> None:
    record = make_record(make_adversary().discriminator)
    part = record.taken(torch.tensor([5, 2]))
    assert part.batch.keys == ["5", "2"] and part.batch.captions == [("picture 5",), ("picture 2",)]
    assert part.batch.labels is not None and part.batch.labels.tolist() == [1, 2]
    assert part.quantized is not None and record.quantized is not None
    for some, whole in (
        (part.images, record.images),
        (part.output, record.output),
        (part.features, record.features),
        (part.quantized.codes, record.quantized.codes),
        (part.quantized.features, record.quantized.features),
    ):
        assert torch.equal(some, whole[[5, 2]])
    assert part.output.is_leaf and part.output.requires_grad and part.tokenizer is record.tokenizer
    empty = Record(record.images, record.output).taken(torch.tensor([1]))
    assert empty.batch.labels is empty.batch.captions is empty.features is empty.quantized is None
