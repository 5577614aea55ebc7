"""Runs: what they leave, resuming, refusing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import tokenizers_vq as tvq
from tokenizers_vq.config import ScheduleChain, ScheduleCurve
from tokenizers_vq.training import loop
from tokenizers_vq.training.recipe import Recipe, load_recipe
from tokenizers_vq.training.runs import train
from tokenizers_vq.training.step import TokenizerTask


def run(out: Path, overrides: list[str], *more: str) -> Path:
    train(load_recipe("vqgan-tiny-64", [*overrides, *more]), out, device="cpu")
    return out


def everything(out: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint and of the saved model."""
    newest = max((out / "checkpoints").iterdir(), key=lambda path: int(path.name))
    tensors = {f"model/{k}": v for k, v in load_file(out / "model" / "model.safetensors").items()}
    for path in sorted(newest.glob("*.safetensors")):
        tensors |= {f"{path.name}/{k}": v for k, v in load_file(path).items()}
    return tensors


def files(folder: Path) -> dict[Path, bytes]:
    """Every file below `folder`."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_bitwise(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    differing = [name for name in a if not torch.equal(a[name], b[name]) and not (a[name] != a[name]).all()]
    assert not differing


def test_a_run_leaves_a_loadable_model_a_log_and_pictures(tmp_path: Path, small: list[str]) -> None:
    out = run(tmp_path / "run", small, "image_every=4", "trackers=[tensorboard]")
    tokenizer = tvq.load(out)
    codes = tokenizer.encode(torch.zeros(1, 3, 16, 24))
    assert codes.shape == (1, 8, 12)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert {"l1", "l2", "generator", "discriminator", "adversary/adaptive", "quantizer/usage"} <= lines[-1].keys()
    assert sorted(path.name for path in (out / "images").iterdir()) == ["0000004.png", "0000008.png"]
    assert "tvq train" in (out / "model" / "README.md").read_text()
    assert list(out.rglob("events.out.tfevents*"))
    assert not list(out.rglob("*partial*"))
    (settings,) = out.rglob("hparams.yml")
    assert "optimizer.lr: 0.001" in settings.read_text()


def test_regularisers_and_states_of_discriminators_are_resumed(tmp_path: Path, small: list[str]) -> None:
    kinds = [
        "{kind: lecam, weight: 0.1, decay: 0.9}",
        "{kind: historical_averaging, weight: 0.1}",
        "{kind: weight_clipping, limit: 0.05, every: 2}",
        "{kind: gradient_penalty, every: 2}",
        "{kind: r2, every: 3}",
        "{kind: orthogonal}",
    ]
    inner = "discriminator: {kind: patchgan, width: 4, layers: 1, norm: none}"
    members = f"{{kind: augmented, p: ada, {inner}}}, {{kind: bottleneck, rate: 0.01, {inner}}}"
    critic = [
        "adversary.objective={kind: wasserstein}",
        f"adversary.discriminator={{kind: several, discriminators: [{members}]}}",
    ]
    asked = [*small, *critic, "log_every=1", f"adversary.regularisers=[{', '.join(kinds)}]"]
    whole = everything(run(tmp_path / "whole", asked))
    run(tmp_path / "parts", asked, "steps=5")
    assert_bitwise(whole, everything(run(tmp_path / "parts", asked)))
    for name in ("0.real_average", "1.average", "1.steps", "1.multiplier", "1.kl"):
        (state,) = [value for key, value in whole.items() if key.endswith(name)]
        assert state.abs().sum() != 0, name
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    for figure in ("lecam", "historical_averaging", "clipped", "gradient_penalty", "r2", "orthogonal"):
        assert any(line.get(f"adversary/{figure}", 0) > 0 for line in lines), figure
    trained = [line for line in lines if "discriminator" in line]
    assert all(line["adversary/gap"] == pytest.approx(-line["discriminator"], abs=1e-6) for line in trained)


def test_resuming_is_bitwise_never_having_stopped(tmp_path: Path, small: list[str]) -> None:
    whole = everything(run(tmp_path / "whole", small))
    run(tmp_path / "parts", small, "steps=3")
    run(tmp_path / "parts", small, "steps=5", "data.workers=1")
    parts = everything(run(tmp_path / "parts", small))
    assert_bitwise(whole, parts)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("steps", [3, 8])
def test_a_finished_run_stays_as_it_is_and_says_so(
    tmp_path: Path, small: list[str], notes: Callable[[], str], steps: int
) -> None:
    run(tmp_path / "run", small, "image_every=8")
    before = files(tmp_path / "run")
    recipe = load_recipe("vqgan-tiny-64", [*small, "image_every=8", f"steps={steps}", "log_every=1"])
    assert train(recipe, tmp_path / "run", device="cpu") == 8
    assert before == files(tmp_path / "run")
    assert f"is at step 8, steps={steps} asks for no more: nothing is changed" in notes()


def test_another_recipe_is_refused_by_the_fields_that_differ(tmp_path: Path, small: list[str]) -> None:
    run(tmp_path / "run", small, "steps=1")
    changed = ["losses.0.weight=2.0", "optimizer.betas=[0.5, 0.9]", "optimizer.lr=0.1", "steps=9", "log_every=1"]
    with pytest.raises(
        ValueError, match=r"another recipe, which differs in losses\.0\.weight \(1\.0, now 2\.0\), "
    ) as no:
        run(tmp_path / "run", small, *changed)
    assert "optimizer.betas.0 (0.9, now 0.5)" in str(no.value) and "lr" not in str(no.value).partition(":")[0]
    assert f"--init-from {tmp_path / 'run'} --out ANOTHER" in str(no.value) and "\n" not in str(no.value)


def test_a_run_goes_on_for_more_steps_with_the_spans_that_it_had(tmp_path: Path, small: list[str]) -> None:
    """Of a recipe whose spans are shares, other steps are another recipe: the line says what keeps the spans."""
    run(tmp_path / "run", small, "steps=2", "adversary.start=0.5")
    with pytest.raises(ValueError, match=r"adversary\.start \(1, now 2\): to resume it, add adversary\.start=1; else"):
        run(tmp_path / "run", small, "steps=4", "adversary.start=0.5")
    run(tmp_path / "run", small, "steps=4", "adversary.start=1")


def test_learning_rate_clip_and_precision_change_in_the_middle_of_a_run_and_it_says_so(
    tmp_path: Path, small: list[str], notes: Callable[[], str]
) -> None:
    run(tmp_path / "run", small, "steps=2")
    assert "differs from its recipe" not in notes()
    schedule = "optimizer.lr={begin: 1e-3, end: 5e-4, over: [2, 4]}"
    run(tmp_path / "run", small, "steps=4", schedule, "optimizer.clip=0.5", "precision=bf16")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["lr/tokenizer"] for line in lines] == pytest.approx([1e-3, 7.5e-4])  # of the last step before the line
    told = f"from step 2 on {tmp_path / 'run'} differs from its recipe in precision (fp32, now bf16), optimizer.lr"
    assert told in notes()
    kept = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert kept["optimizer"]["clip"] == 0.5 and kept["precision"] == "bf16" and kept["steps"] == 4


def test_a_run_that_got_nowhere_takes_the_recipe_put_right(tmp_path: Path, small: list[str]) -> None:
    for path in ("./no/such/folder", "nophotos"):  # a bare name is no name of the Hub, which is not asked
        with pytest.raises(FileNotFoundError, match="no data at"):
            run(tmp_path / "run", small, f"data.path={path}")
        assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("steps: 3\n")  # as a run leaves it that was killed at once
    run(tmp_path / "run", small, "steps=1")
    assert tvq.load(tmp_path / "run")


def test_going_on_with_other_data_is_refused(tmp_path: Path, small: list[str]) -> None:
    run(tmp_path / "run", small, "steps=1")
    (tmp_path / "run" / "data.json").write_text(json.dumps({"size": 18}))
    with pytest.raises(ValueError, match=r"holds 19 images, the run .* began with 18"):
        run(tmp_path / "run", small, "steps=2")


def test_data_are_known_by_names_sizes_and_samples_wherever_they_lie(
    tmp_path: Path, small: list[str], notes: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same folder written in another way, or moved, goes on; one changed file is refused by its name."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        path = tmp_path / f"photos/{'Train' if number else 'Test'}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), (number, 0, 0)).save(path)
    begin = run(tmp_path / "run", [*small, "data.path=photos"], "steps=1", "image_every=0")
    kept = json.loads((begin / "data.json").read_text())
    where = str(tmp_path / "photos/Train")
    assert (kept["size"], kept["split"], kept["files"]) == (5, "Train", 5)
    assert Path(kept["folder"]).resolve() == Path(where) and "5 images in photos/Train, split Train" in kept.values()
    assert "reading 5 images in photos/Train, split Train" in notes()
    for step, path in enumerate(("photos/", str(tmp_path / "photos"), "./run/../photos"), start=2):
        run(tmp_path / "run", [*small, f"data.path={path}"], f"steps={step}", "image_every=0")
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    run(tmp_path / "run", [*small, "data.path=elsewhere"], "steps=5", "image_every=0")
    recipe = (tmp_path / "run/recipe.yaml").read_bytes()
    assert b"path: elsewhere" in recipe
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "other")
    content = (tmp_path / "other/Train/3.png").read_bytes()
    (tmp_path / "other/Train/3.png").write_bytes(content[:-1] + b"x")
    with pytest.raises(ValueError, match=r"other holds other images than the run .* began with: 3.png differs"):
        run(tmp_path / "run", [*small, "data.path=other"], "steps=6", "image_every=0")
    assert (tmp_path / "run/recipe.yaml").read_bytes() == recipe
    (tmp_path / "elsewhere/Train/2.png").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"elsewhere holds other images than the run .* began with: 2.png differs"):
        run(tmp_path / "run", [*small, "data.path=elsewhere"], "steps=6", "image_every=0")


def test_what_must_fail_later_fails_before_the_first_step(tmp_path: Path, small: list[str]) -> None:
    for override, message in (
        ("adversary.discriminator.layers=3", "images of at least 24x24, got 16x16"),
        ("trackers=[wandb]", "wandb is not installed"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path / "run", small, override)
    assert not (tmp_path / "run").exists()  # a run that could not begin leaves no folder


def test_shares_of_the_run_become_steps(small: list[str]) -> None:
    curve = "{begin: 0.0, end: 1.0, over: [2, 1.0]}"
    recipe = load_recipe(
        "vqgan-tiny-64",
        [*small, f"optimizer.lr={curve}", f"quantizer_losses={{codebook: {curve}}}", "adversary.start=0.5"],
    )
    assert isinstance(recipe.optimizer.lr, ScheduleCurve) and recipe.optimizer.lr.over == (2, 8)
    assert recipe.quantizer_losses["codebook"] == recipe.optimizer.lr
    assert recipe.adversary is not None and recipe.adversary.start == 4
    longer = recipe.replace(steps=100)
    assert longer.optimizer == recipe.optimizer and longer.adversary == recipe.adversary
    assert recipe == Recipe(**recipe.to_dict())
    short = load_recipe("demo", ["steps=3"])
    assert isinstance(short.optimizer.lr, ScheduleChain)
    assert [part.over for part in short.optimizer.lr.parts] == [(0, 0), (0, 3)] and short.optimizer.lr.at(0) == 1e-3
    with pytest.raises(ValueError, match=r"optimizer\.lr\.over: needs a first step and a later one, got \[9, 8\]"):
        load_recipe("vqgan-tiny-64", [*small, "optimizer.lr={begin: 0.0, end: 1.0, over: [9, 1.0]}"])


DAMAGED = [("data.json", ""), ("data.json", '{"size": "x"}'), ("recipe.yaml", "a: ["), ("recipe.yaml", "")]


@pytest.mark.parametrize(("name", "content"), DAMAGED)
def test_damaged_records_of_a_run_are_named(tmp_path: Path, small: list[str], name: str, content: str) -> None:
    run(tmp_path / "run", small, "steps=1")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(ValueError, match=name) as no:
        run(tmp_path / "run", small, "steps=2")
    assert "\n" not in str(no.value)


def test_a_foreign_folder_is_not_written_into(tmp_path: Path, small: list[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        run(tmp_path, small)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_micro_batches_add_up_to_the_batch(tmp_path: Path, small: list[str]) -> None:
    plain = [*small, "optimizer={kind: sgd, lr: 0.05}", "steps=3", "adversary.adaptive=false"]
    plain += ["adversary.discriminator.norm=none", "adversary.start=0", "adversary.warmup=0"]
    plain += ["model.quantizer.revive_after=null"]
    whole, parts = (load_file(run(tmp_path / n, plain, f"accumulate={n}") / "model/model.safetensors") for n in "14")
    for name in whole:
        if name != "quantizer.age":  # counts updates
            assert torch.allclose(whole[name], parts[name], rtol=1e-4, atol=1e-5), name


def test_init_from_begins_with_its_weights(tmp_path: Path, small: list[str], notes: Callable[[], str]) -> None:
    first = run(tmp_path / "first", small, "steps=1")
    recipe = load_recipe("vqgan-tiny-64", [*small, "steps=1", "optimizer.lr=0.0", "ema=null"])
    train(recipe, tmp_path / "second", device="cpu", init_from=str(first))
    a, b = (load_file(out / "model" / "model.safetensors") for out in (first, tmp_path / "second"))
    assert torch.equal(a["encoder.conv_in.weight"], b["encoder.conv_in.weight"])
    assert "goes on" not in notes()
    train(recipe, tmp_path / "second", device="cpu", init_from=str(first))
    assert "resumes from its checkpoint: --init-from" in notes()
    with pytest.raises(ValueError, match="do not fit the recipe's model, first at quantizer"):
        train(
            load_recipe("vqgan-tiny-64", [*small, "model.quantizer.num_codes=16"]),
            tmp_path / "third",
            init_from=str(first),
        )


def test_every_parameter_gets_a_gradient_in_every_step(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing: list[str] = []
    update = TokenizerTask._update

    def check(self: TokenizerTask, name: str, *rest: object) -> dict[str, Tensor]:
        module: nn.Module = self.modules[name]
        missing.extend(f"{name}.{key}" for key, parameter in module.named_parameters() if parameter.grad is None)
        return update(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(TokenizerTask, "_update", check)
    run(tmp_path / "run", small)
    assert not missing


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
LAUNCH += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m", "tokenizers_vq", "train"]


def test_two_processes_under_accelerate_launch_equal_one(tmp_path: Path, small: list[str]) -> None:
    sgd = [*small, "optimizer={kind: sgd, lr: 0.05}", "accumulate=1", "image_every=8"]
    alone = everything(run(tmp_path / "alone", sgd))
    both = ["vqgan-tiny-64", *sgd, "--out", str(tmp_path / "both"), "--device", "cpu"]
    subprocess.run([*LAUNCH, *both], env={**os.environ, "ACCELERATE_USE_CPU": "true"}, check=True)
    together = everything(tmp_path / "both")
    assert json.loads((tmp_path / "both" / "checkpoints" / "8" / "checkpoint.json").read_text())["processes"] == 2
    assert together.keys() == alone.keys()
    for name, tensor in alone.items():
        assert torch.allclose(tensor.double(), together[name].double(), rtol=1e-4, atol=2e-5), name


def test_seeds_depend_on_every_part() -> None:
    draws = set()
    for parts in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 1, 1)]:
        loop.seed_everything(*parts)
        draws.add(float(torch.rand(())))
    assert len(draws) == 6
