"""Fine-tuning: what `train` freezes stays bit for bit, `--init-from` takes a converted model and its discriminator."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tokenizers_vq as tvq
from tests.conftest import shared
from tokenizers_vq.conversion.write import convert_to_folder
from tokenizers_vq.discriminators import PatchGANConfig, saved
from tokenizers_vq.quantizers import ResidualQuantizerConfig, SimVqQuantizerConfig, VectorQuantizerConfig
from tokenizers_vq.training.recipe import load_recipe
from tokenizers_vq.training.runs import train

SHORT = ["steps=2", "checkpoint_every=2", "ema=null", "accumulate=1", "adversary=null"]


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model" / "model.safetensors")


def moved(before: dict[str, Tensor], after: dict[str, Tensor], part: str) -> bool:
    names = [name for name in before if name.startswith(f"{part}.")]
    assert names
    return any(not torch.equal(before[name], after[name]) for name in names)


@pytest.fixture
def first(tmp_path: Path, small: list[str]) -> Path:
    """A run of one step to go on from."""
    train(load_recipe("vqgan-tiny-64", [*small, *SHORT, "steps=1"]), tmp_path / "first", device="cpu")
    return tmp_path / "first"


@pytest.mark.parametrize(
    ("mode", "moving"), [("all", {"encoder", "quantizer", "decoder"}), ("frozen_codebook", {"encoder", "decoder"}),
                         ("decoder", {"decoder"})],
)  # fmt: skip
@pytest.mark.parametrize("codebook", ["gradient", "ema"])
def test_only_what_the_mode_says_moves(
    mode: str, moving: set[str], codebook: str, tmp_path: Path, small: list[str]
) -> None:
    given = [*small, *SHORT, f"model.quantizer.codebook={codebook}", "model.quantizer.kmeans_batches=1"]
    train(load_recipe("vqgan-tiny-64", [*given, "steps=1"]), tmp_path / "first", device="cpu")
    recipe = load_recipe("vqgan-tiny-64", [*given, f"train={mode}"])
    train(recipe, tmp_path / "second", device="cpu", init_from=str(tmp_path / "first"))
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert {part for part in ("encoder", "quantizer", "decoder") if moved(before, after, part)} == moving
    if mode == "decoder":
        a, b = tvq.load(tmp_path / "first"), tvq.load(tmp_path / "second")
        assert a.fingerprint == b.fingerprint
    train(recipe.replace(steps=4), tmp_path / "second", device="cpu")  # goes on without --init-from
    again = weights(tmp_path / "second")
    assert {part for part in ("encoder", "quantizer", "decoder") if moved(after, again, part)} == moving


@pytest.mark.parametrize(
    "config",
    [VectorQuantizerConfig(num_codes=8, dim=4), VectorQuantizerConfig(num_codes=8, dim=4, distance="cosine"),
     ResidualQuantizerConfig(num_codes=8, dim=4, levels=2), SimVqQuantizerConfig(num_codes=8, dim=4)],
)  # fmt: skip
def test_a_frozen_codebook_still_gives_the_encoder_its_gradient(config: VectorQuantizerConfig) -> None:
    quantizer = config.build().eval().requires_grad_(False)
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    (quantizer(features).features * torch.randn(2, 4, 3, 3)).sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train=decoder", "quantizer_losses={commitment: 2.0}"], "quantizer_losses.*take it out, or give train=all"),
        (["train=decoder", "anneal={quantizer.temperature: 1.0}"], "anneal.*train=decoder freezes it"),
        (["train=frozen_codebook", "model.quantizer={kind: gumbel, num_codes: 8, dim: 4}"], "give train=decoder"),
        (["train=frozen_codebook", "model.quantizer={kind: fsq, levels: [4, 4]}"], "no codebook to freeze"),
        (["train=encoder"], "train: input should be"),
        (["model=nowhere"], "no model preset 'nowhere'"),
    ],
)
def test_contradictions_are_refused_with_what_to_change(overrides: list[str], said: str, small: list[str]) -> None:
    with pytest.raises(ValueError, match=said):
        load_recipe("vqgan-tiny-64", [*small, *overrides])


def test_frozen_parts_need_a_model_to_begin_with(tmp_path: Path, small: list[str]) -> None:
    with pytest.raises(ValueError, match="train=decoder keeps what was learnt before: give --init-from MODEL"):
        train(load_recipe("vqgan-tiny-64", [*small, "train=decoder"]), tmp_path / "run", device="cpu")


def test_a_run_older_than_a_field_of_the_recipe_goes_on(tmp_path: Path, small: list[str]) -> None:
    recipe = load_recipe("vqgan-tiny-64", [*small, *SHORT])
    train(recipe, tmp_path / "run", device="cpu")
    path = tmp_path / "run" / "recipe.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("train:")))
    assert train(recipe.replace(steps=3), tmp_path / "run", device="cpu") == 3


def test_the_discriminator_beside_the_model_is_taken_where_it_fits(
    first: Path, tmp_path: Path, small: list[str], notes: Callable[[], str]
) -> None:
    beside = first / "model" / saved.FOLDER
    judge = PatchGANConfig(width=4, layers=1).build(3)
    given = [*small, *SHORT[:-1], "adversary.optimizer={lr: 0.0}", "adversary.start=0", "adversary.warmup=0"]

    def second(name: str, *overrides: str) -> dict[str, Tensor]:
        out = tmp_path / name
        train(load_recipe("vqgan-tiny-64", [*given, *overrides]), out, device="cpu", init_from=str(first))
        return load_file(out / "checkpoints" / "2" / "model_1.safetensors")

    second("without")
    assert "no discriminator lies beside it" in notes()
    saved.save(judge, beside)
    taken = second("with")
    assert "untrained" not in notes()
    assert torch.equal(taken["head.weight"], judge.head.weight)
    other = second("other", "adversary.discriminator.width=8")
    said = notes()
    assert "its discriminator is not taken, width is 4, here 8" in said
    again = second("again", *re.findall(r"give '(adversary\.discriminator=[^']*)'", said))
    assert torch.equal(again["head.weight"], judge.head.weight)
    assert other["head.weight"].shape[1] == 16


def test_a_converted_model_is_fine_tuned_by_its_folder(
    tmp_path: Path, small: list[str], notes: Callable[[], str]
) -> None:
    weights_ = shared("golden/taming/vq-f4-ch32/weights.safetensors")
    convert_to_folder("taming", weights_, None, tmp_path / "vqgan")
    given = [override for override in small if not override.startswith("model.")]
    recipe = load_recipe(
        "vqgan-tiny-64",
        [*given, *SHORT, "steps=1", f"model={tmp_path / 'vqgan'}", "model.image_size=16", "train=decoder"],
    )
    train(recipe, tmp_path / "run", device="cpu", init_from=str(tmp_path / "vqgan"))
    assert "the recipe's model differs from it in image_size" in notes()
    tuned, published = tvq.load(tmp_path / "run"), tvq.load(tmp_path / "vqgan")
    assert tuned.fingerprint == published.fingerprint
    assert tuned.config.quantizer.legacy_beta
