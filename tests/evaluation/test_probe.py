"""Linear probes: the ridge against refits, what each probe can and cannot see, and every refusal in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokenizers_vq as tvq
from tests.cli.conftest import Result
from tests.training.conftest import SMALL
from tokenizers_vq.cli import main
from tokenizers_vq.discriminators import PatchGANConfig, ProjectionConfig, StyleGAN2Config
from tokenizers_vq.discriminators.base import Discriminator, Judgement
from tokenizers_vq.evaluation import linear, probe
from tokenizers_vq.evaluation.probe import Accuracy
from tokenizers_vq.training.discriminators import trained_discriminator
from tokenizers_vq.training.recipe import load_recipe
from tokenizers_vq.training.runs import train

NARROW = ["image_size=16", "encoder.width=8", "decoder.width=8", "quantizer.num_codes=32", "quantizer.dim=4"]
CPU = ("--device", "cpu", "--precision", "fp32")


def batches_of(images: Tensor, labels: Tensor, size: int = 16) -> Iterator[dict[str, Any]]:
    for at in range(0, len(images), size):
        yield {"images": images[at : at + size], "labels": labels[at : at + size]}


def coloured(count: int = 90, classes: int = 3, side: int = 16) -> tuple[Tensor, Tensor]:
    """Noise around a colour for each class."""
    labels = torch.arange(count) % classes
    colours = torch.tensor([[0.6, -0.6, -0.6], [-0.6, 0.6, -0.6], [-0.6, -0.6, 0.6]])
    return (colours[labels % 3][..., None, None] + 0.2 * torch.randn(count, 3, side, side)).clamp(-1, 1), labels


@pytest.mark.parametrize(("count", "width"), [(30, 6), (12, 40)])
@pytest.mark.parametrize("standardise", [True, False])
def test_the_penalty_is_that_of_refits_without_each_image(count: int, width: int, standardise: bool) -> None:
    x = torch.randn(count, width, dtype=torch.float64) * torch.linspace(0.5, 2, width)
    labels = (x[:, 0] + 0.7 * torch.randn(count) > 0).long() + (x[:, 1] > 1).long()
    found = linear.fit(x, labels, 3, standardise=standardise)
    y = F.one_hot(labels, 3).double()
    features = (x - found.mean) * found.scale
    mean_square = torch.linalg.svdvals(features).square()[: min(width, count - (width > count))].mean()

    def ridge(rows: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        middle, level = features[rows].mean(0), y[rows].mean(0)
        centred = features[rows] - middle
        gram = centred.T @ centred + penalty * torch.eye(width)
        return middle, torch.linalg.solve(gram, centred.T @ (y[rows] - level)), level

    errors = []
    for relative in linear._PENALTIES:
        squares = []
        for i in range(count):
            middle, weight, level = ridge(torch.arange(count) != i, relative * mean_square)
            squares.append((y[i] - (features[i] - middle) @ weight - level).square())
        errors.append(torch.stack(squares).mean())
    assert found.penalty == linear._PENALTIES[int(torch.stack(errors).argmin())]
    middle, weight, level = ridge(torch.ones(count, dtype=torch.bool), found.penalty * mean_square)
    wanted = ((features - middle) @ weight + level).argmax(1)
    assert torch.equal(found.predict(x), wanted)


def test_features_that_do_not_vary_tell_nothing_and_break_nothing() -> None:
    x, labels = torch.randn(20, 4), torch.arange(20) % 2
    with_constants = torch.cat([x, torch.full((20, 2), 1e3 / 3)], dim=1)
    assert torch.equal(
        linear.fit(with_constants, labels, 2).predict(with_constants), linear.fit(x, labels, 2).predict(x)
    )
    constant = linear.fit(torch.ones(9, 3), torch.tensor([0, 1, 1] * 3), 2)
    assert constant.predict(torch.randn(5, 3)).tolist() == [1] * 5


def test_wilsons_interval() -> None:
    # Brown, Cai and DasGupta (2001), equation 4, by hand for 8 of 10.
    z, n, p = 1.959964, 10, 0.8
    middle, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5,
    )
    assert Accuracy(8, 10).interval == pytest.approx((middle - half, middle + half), abs=1e-6)


def test_colours_are_seen_everywhere_and_random_labels_nowhere() -> None:
    tokenizer = tvq.create("vqvae-tiny-64", NARROW)
    images, labels = coloured()
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    drawn = torch.get_rng_state()
    found = probe(tokenizer, batches_of(images, labels), label_names=["red", "green", "blue"], seed=3)
    assert torch.equal(torch.get_rng_state(), drawn) and tokenizer.training
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
    assert list(found.rows) == ["pixels", "encoder_features", "code_vectors", "code_histogram"]
    assert found.rows["pixels"].trained == Accuracy(24, 24) and found.rows["pixels"].untrained is None
    assert found.rows["encoder_features"].trained.value == 1
    assert found.classes == {"red": 30, "green": 30, "blue": 30}
    assert found.chance == Accuracy(8, 24) and found.learning == 66
    again = probe(tokenizer, batches_of(images, labels), label_names=["red", "green", "blue"], seed=3)
    assert again == found
    assert probe(tokenizer, batches_of(images, labels), seed=4).rows["code_vectors"] is not None

    random = probe(tokenizer, batches_of(images, labels[torch.randperm(90)]))
    for row in random.rows.values():
        low, high = row.trained.interval
        assert low < 1 / 3 + 0.1 and high > 1 / 3 - 0.1


def test_the_untrained_network_is_the_same_network_with_fresh_weights() -> None:
    images, labels = coloured(60)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        fresh = tvq.create("vqvae-tiny-64", NARROW)
    trained = tvq.create("vqvae-tiny-64", NARROW)
    own = probe(fresh, batches_of(images, labels))
    other = probe(trained, batches_of(images, labels), seed=5)
    held = probe(fresh, batches_of(images, labels), seed=5)
    for name in ("encoder_features", "code_vectors", "code_histogram"):
        assert other.rows[name].untrained == held.rows[name].trained == held.rows[name].untrained
    assert own.rows.keys() == other.rows.keys()


def test_a_histogram_does_not_see_places_and_vectors_do() -> None:
    tokenizer = tvq.create("vqvae-tiny-64", NARROW)
    labels = torch.arange(80) % 2
    images = torch.full((80, 3, 16, 16), -0.5) + 0.05 * torch.randn(80, 3, 16, 16)
    images[labels == 0, :, :, :8] += 1  # bright on the left, or on the right
    images[labels == 1, :, :, 8:] += 1
    images = torch.cat([images, images.flip(-1)])
    labels = torch.cat([labels, 1 - labels])
    rows = probe(Mirrored(tokenizer), batches_of(images, labels)).rows
    assert rows["code_vectors"].trained.value == 1
    assert rows["code_histogram"].trained.interval[0] <= 0.5


class Mirrored:
    """Codes of the mean of each 4x4 patch: what is on the left is coded as it is on the right."""

    def __init__(self, tokenizer: Any) -> None:
        self.inner, self.device, self.dtype = tokenizer, tokenizer.device, tokenizer.dtype
        self.code_layout, self.quantizers = tokenizer.code_layout, (self,)

    def encode_features(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 4)

    def encode(self, images: Tensor) -> Tensor:
        return (self.encode_features(images).mean(1) > 0).long()

    def lookup(self, codes: Tensor) -> Tensor:
        return codes[:, None].float()


NARROW_VQGAN = [f"{part}.{field}" for part in ("encoder", "decoder") for field in ("width=8", "groups=4")]


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        (
            "vqvae2-tiny-64",
            [f"{part}.{field}=8" for part in ("encoder", "decoder") for field in ("width", "block_width")],
        ),
        ("var-tiny-64", NARROW_VQGAN),
        ("rqvae-tiny-64", NARROW_VQGAN),
        ("titok-tiny-64", [f"{part}.layers=1" for part in ("encoder", "decoder")]),
        ("lfq-tiny-64", NARROW_VQGAN),
    ],
)
def test_every_layout_of_codes_is_probed(preset: str, overrides: list[str]) -> None:
    tokenizer = tvq.create(preset, overrides)
    images, labels = coloured(24, side=64)
    found = probe(tokenizer, batches_of(images, labels, 8))
    assert len(found.rows) == 4 and all(
        row.untrained is not None for name, row in found.rows.items() if name != "pixels"
    )
    assert all(0 < row.numbers <= 4096 for row in found.rows.values())
    assert found.rows["pixels"].trained.value == 1


class Told(Discriminator):
    """Its features are what it is told."""

    def __init__(self) -> None:
        super().__init__(PatchGANConfig(), 3, (16, 16))
        self.classes = nn.Embedding.from_pretrained(torch.eye(3))

    def inputs(self, record: Any, images: Tensor) -> tuple[Any, ...]:
        texts = torch.tensor([[float(len(text)) for text in texts] for texts in record.batch.captions])
        return images, record.batch.labels, texts

    def forward(self, images: Tensor, labels: Tensor, captions: Tensor) -> Judgement:  # type: ignore[override]
        return Judgement([images.mean((1, 2, 3))], [torch.cat([self.classes(labels), captions], 1)], {})


def test_a_discriminator_is_not_told_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PatchGANConfig, "build", lambda *_: Told())
    images, labels = coloured(60)
    given = [
        {**batch, "captions": [("red",) if label == 0 else ("not red",) for label in batch["labels"].tolist()]}
        for batch in batches_of(images, labels)
    ]
    found = probe(tvq.create("vqvae-tiny-64", NARROW), given, discriminator=Told())
    assert found.rows["discriminator"].trained == found.chance


def test_conditional_discriminators_are_probed_in_eval_mode() -> None:
    config = ProjectionConfig(discriminator=PatchGANConfig(width=4, layers=1), num_classes=3)
    discriminator = config.build(3, (16, 16)).train()
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    found = probe(tvq.create("vqvae-tiny-64", NARROW), batches_of(*coloured(60)), discriminator=discriminator)
    row = found.rows["discriminator"]
    assert row.trained.value == 1 and row.untrained is not None
    assert discriminator.training
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
    with pytest.raises(ValueError, match="built for images of 8x8, got 16x16"):
        other = StyleGAN2Config(width=0.01).build(3, (8, 8))
        probe(tvq.create("vqvae-tiny-64", NARROW), batches_of(*coloured(24)), discriminator=other)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-1] * 12, "none of the 12 images has a class"),
        ([2] * 12, "all 12 images are of one class, 'blue': a probe tells two or more apart"),
        ([0, 1, 2] * 3, r"too few images: .* two classes of 4 images or more, and of 3 classes 0 have as many"),
        ([0] * 9 + [1, 2, 2], r"of 3 classes 1 has as many: give more images"),
    ],
)
def test_what_cannot_be_probed_is_one_line(labels: list[int], message: str) -> None:
    images = torch.rand(len(labels), 3, 16, 16) - 0.5
    with pytest.raises(ValueError, match=message):
        probe(
            tvq.create("vqvae-tiny-64", NARROW),
            batches_of(images, torch.tensor(labels)),
            label_names=["red", "green", "blue"],
        )


def test_small_classes_and_images_without_one_are_left_out_by_name() -> None:
    images, labels = coloured(32)
    labels[:3], labels[3:5] = 7, -1
    found = probe(tvq.create("vqvae-tiny-64", NARROW), batches_of(images, labels))
    assert set(found.classes) == {"0", "1", "2"} and sum(found.classes.values()) == 27
    assert found.left_out == {
        "images without a class": "2 of 32",
        "classes": "1 of 4, with fewer than 4 images each",
    }
    with pytest.raises(ValueError, match=r"held_out is a share between 0 and 1, got 1\.0"):
        probe(tvq.create("vqvae-tiny-64", NARROW), batches_of(images, labels), held_out=1.0)
    with pytest.raises(ValueError, match="no images to probe"):
        probe(tvq.create("vqvae-tiny-64", NARROW), [])


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    images, labels = coloured(24)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "rgb"[int(label)] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        tvq.images.to_pil(image.clamp(-1, 1)).save(path)
    return folder


@pytest.fixture
def tvq_command(capfd: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: Any) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return Result(int(stop.value.code or 0), *capfd.readouterr())

    return run


def test_the_verb_probes_a_run_and_its_discriminator(tvq_command: Any, classes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(load_recipe("vqgan-tiny-64", [f"data={classes}", *SMALL, "steps=4", "adversary.start=1"]), run, device="cpu")
    discriminator, reason = trained_discriminator(str(run))
    assert isinstance(discriminator, Discriminator) and reason == "" and not discriminator.training
    done = tvq_command("probe", run, "--data", classes, "--json", "--out", tmp_path / "p.json", *CPU)
    assert done.status == 0, done.err
    result = json.loads(done.out)
    assert result == json.loads((tmp_path / "p.json").read_text())
    assert set(result["probes"]) == {"pixels", "encoder_features", "code_vectors", "code_histogram", "discriminator"}
    assert result["classes"] == {"b": 8, "g": 8, "r": 8} and result["images"] == {"learning": 18, "held_out": 6}
    assert result["probes"]["discriminator"]["untrained"]["accuracy"] <= 1
    shown = tvq_command("probe", run, "--data", classes, *CPU)
    assert "discriminator" in shown.out and "33.3%" in shown.out and "3 classes; 18 images" in shown.out

    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("width: 4", "width: 8"))
    refused = tvq_command("probe", run, "--data", classes, *CPU)
    assert refused.status == 2 and "does not fit the discriminator" in refused.err


def test_a_discriminator_that_has_not_begun_is_not_probed(tmp_path: Path, classes: Path) -> None:
    overrides = [f"data={classes}", *SMALL, "steps=2", "adversary.start=2", "checkpoint_every=2"]
    train(load_recipe("vqgan-tiny-64", overrides), tmp_path / "run", device="cpu")
    found, reason = trained_discriminator(str(tmp_path / "run"))
    assert found is None and reason == "at step 2 of the run it is untrained: it starts at step 2"
    assert trained_discriminator("vit-vqgan-tiny-64") == (None, "none was saved with this model")


def test_data_without_classes_name_what_there_is(tvq_command: Any, tmp_path: Path, classes: Path) -> None:
    import datasets

    model = tmp_path / "model"
    tvq.create("vqvae-tiny-64", NARROW).save_pretrained(model)
    pictures = [{"bytes": path.read_bytes(), "path": None} for path in sorted(classes.glob("*/*.png"))]
    table = datasets.Dataset.from_dict({"image": pictures, "shade": [i % 2 for i in range(24)], "place": [0] * 24})
    table.to_parquet(tmp_path / "data.parquet")
    unnamed = tvq_command("probe", model, "--data", tmp_path / "data.parquet", *CPU)
    assert unnamed.status == 2 and unnamed.err.strip().splitlines()[-1].endswith(
        "none of the 24 images has a class: give --column, one of: image, shade, place"
    )
    assert tvq_command("probe", model, "--data", tmp_path / "data.parquet", "--column", "shade", *CPU).status == 0
    for column, message in (
        ("place", "all 24 images are of one class, '0'"),
        ("shape", "no column 'shape'; did you mean"),
    ):
        refused = tvq_command("probe", model, "--data", tmp_path / "data.parquet", "--column", column, *CPU)
        assert refused.status == 2 and message in refused.err.strip().splitlines()[-1]
    flat = tvq_command("probe", model, "--data", classes / "r", *CPU)
    assert flat.status == 2 and flat.err.strip().endswith("put the images of each class into a folder of its own")
