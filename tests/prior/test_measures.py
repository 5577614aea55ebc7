"""The formulas on sets of points whose values are known, and what strengthening damage does to them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from prior.measures import Judge, class_score, density_coverage, nearest, nearest_classes, precision_recall, spread
from prior.measures.neighbours import radii
from tests.benchmarks.measures import damages, one_a_class, row
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.loading import evaluation_batches


def points(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def test_precision_and_recall_of_known_points() -> None:
    real = points(0, 1, 2, 3)  # radii at k=1 are 1: balls cover [-1, 4]
    assert radii(real, 1).tolist() == [1, 1, 1, 1] and radii(real, 2).tolist() == [2, 1, 1, 2]
    found = precision_recall(real, points(0.5, 0.6, 3.5, 9.0), k=1)
    assert found.quality == 0.75  # 9 lies in no ball
    # Radii of the samples: 0.1, 0.1, 2.9, 5.5: [0.4, 0.7], [0.6, 6.4], [3.5, 14.5] hold 1, 2 and 3 of the real ones.
    assert found.variety == 0.75
    assert precision_recall(real, real, k=1) == (1, 1)
    assert precision_recall(real, real + 100, k=1) == (0, 0)
    # One point again and again is as precise as can be, and recalls what it is.
    assert precision_recall(real, points(1, 1, 1, 1), k=1) == (1, 0.25)


def test_density_and_coverage_of_known_points() -> None:
    real = points(0, 1, 2, 3)
    # At k=1 open balls of radius 1: 0.5 lies in those of 0 and 1, 3.5 in that of 3, 9 in none.
    found = density_coverage(real, points(0.5, 3.5, 9.0), k=1)
    assert found.quality == pytest.approx(3 / 3) and found.variety == 0.75
    # At k=2 radii 2, 1, 1, 2: 0.5 in 0, 1; 1.5 in 0, 1, 2, 3.
    found = density_coverage(real, points(0.5, 1.5), k=2)
    assert found.quality == pytest.approx(6 / 4) and found.variety == 1
    # Samples of one place are dense and cover little; an outlier among the real ones costs density nothing.
    assert density_coverage(points(0, 1, 2, 3, 50), points(1, 1, 1), k=1) == (pytest.approx(1.0), 0.2)
    with pytest.raises(ValueError, match="the 5 nearest of 4 images"):
        density_coverage(real, real, k=5)


def test_equal_points_count_as_neighbours() -> None:
    assert radii(points(0, 0, 0, 5), 1).tolist() == [0, 0, 0, 5]
    torch.manual_seed(0)
    many = torch.randn(1500, 8)  # more than one block
    order = torch.cdist(many.double(), many.double()).sort(dim=1).values
    torch.testing.assert_close(radii(many, 3), order[:, 3])
    found = nearest(many, many)
    assert torch.equal(found.indices, torch.arange(1500)) and float(found.distances.max()) < 1e-6


def test_the_class_score_of_known_probabilities() -> None:
    sure = torch.eye(4).mul(200.0)
    assert class_score(sure.repeat(3, 1)) == pytest.approx(4)
    assert class_score(sure[:1].repeat(5, 1)) == pytest.approx(1)
    assert class_score(torch.zeros(6, 4)) == pytest.approx(1)
    half = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log()
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert class_score(half) == pytest.approx(math.exp(kl))
    assert class_score(torch.cat((sure[:1], sure[:1], sure[1:2], sure[2:3])), splits=2) == pytest.approx(1.5)


def test_classes_of_neighbours_and_the_spread_within_them() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1])
    references = points(0, 1, 5, 6, 7)
    assert nearest_classes(points(0.4, 5.8, 3.1), references, labels, k=3).tolist() == [0, 1, 1]
    assert nearest_classes(points(2.9), references, labels, k=2).tolist() == [0]  # one vote each: the nearer one's
    images = points(0, 4, 10, 11, 13)[..., None, None]

    def distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first - second).abs().flatten(1).sum(dim=1)

    assert spread(images, labels, distance) == pytest.approx((4 + 1 + 3 + 2) / 4)
    assert spread(images[:3], torch.arange(3), distance) is None


def test_a_judge_sees_what_its_backbone_says() -> None:
    judge = Judge(layer="blocks.1")
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    seen = judge.see(images.split(2))
    assert seen.features.shape == (3, 24) and seen.logits.shape == (3, judge.classes)
    resized = F.interpolate(images, (224, 224), mode="bicubic", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(seen.logits, judge.backbone.logits(resized), atol=1e-4, rtol=1e-4)
    assert seen.distance(seen) == pytest.approx(0, abs=1e-6) and judge.score_name == "class_score"
    with pytest.raises(ValueError, match="no images to judge"):
        judge.see([])


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    """Real pictures `(n, 3, 64, 64)`, cut from larger ones, in an order that mixes them."""
    batches = evaluation_batches(DataConfig(path="skimage"), image_size=192, channels=3, batch_size=8)
    whole = torch.cat([batch["images"] for batch in batches])
    cut = whole.unfold(2, 64, 64).unfold(3, 64, 64).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    return cut[torch.randperm(len(cut), generator=torch.Generator().manual_seed(0))][:128]


def test_damage_of_growing_strength_grows_the_distance(crops: torch.Tensor) -> None:
    judge = Judge(layer="blocks.2", size=96)
    first, second = crops[:96:2], crops[1:96:2]
    real, floor = judge.see([first]), judge.see([second])
    assert row(real, real)["distance"] == pytest.approx(0, abs=1e-6)
    strong = {"blur 1", "blur 4", "noise 0.1", "noise 0.4", "jpeg 20", "jpeg 8", "halving 1", "halving 3"}
    last: dict[str, float] = {}
    for name, damage in damages().items():
        if name in strong:
            kind, found = name.split()[0], row(real, judge.see([damage(second)]))["distance"]
            assert found > last.get(kind, floor.distance(real)), name
            last[kind] = found
    assert len(last) == 4


def test_one_image_a_class_fools_the_class_score_and_not_recall(crops: torch.Tensor) -> None:
    seen = Judge(layer="blocks.2", size=96).see(crops.split(32))
    classes = seen.logits.argmax(dim=1)
    # Classes of several images, as any set to be judged has them.
    often = (classes[:, None] == classes).sum(dim=1) >= 3
    kept = seen.part(torch.nonzero(often)[:, 0][classes[often].argsort(stable=True)])
    real, other = kept.part(slice(0, None, 2)), kept.part(slice(1, None, 2))
    plain, fooled = row(real, other), row(real, one_a_class(other))
    assert fooled["class_score"] > plain["class_score"]
    assert fooled["recall"] < 0.9 * plain["recall"]
