"""Priors' runs: learning, the order of training, resuming, two processes, refusals."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import prior
import tokenizers_vq as tvq
from prior.conditions import ClassConfig
from prior.data import Data, split
from prior.networks.gpt import Gpt, GptConfig
from prior.recipe import PriorRecipe, load_recipe
from prior.scoring import bits_per_token, entropies, score, unigram
from prior.sequences import Sequence
from prior.training import PriorTask, configure, train
from tests.prior.conftest import SMALL, save_tokenizer
from tests.processes import in_processes
from tokenizers_vq.config import read_yaml
from tokenizers_vq.data.shards import read_codes
from tokenizers_vq.quantizers import Quantizer


def run(codes: Path, out: Path, *overrides: str) -> Path:
    train(load_recipe("gpt-tiny", codes, [*SMALL, *overrides]), out, device="cpu")
    return out


def everything(out: Path) -> dict[str, Tensor]:
    """Every tensor of the saved model, and of the newest checkpoint."""
    newest = max((out / "checkpoints").iterdir(), key=lambda path: int(path.name))
    tensors = {f"model/{name}": tensor for name, tensor in load_file(out / "model" / "model.safetensors").items()}
    for path in newest.glob("*.safetensors"):
        tensors |= {f"{path.name}/{name}": tensor for name, tensor in load_file(path).items()}
    pending = [(path.name, torch.load(path, weights_only=False)) for path in newest.glob("optimizer*.bin")]
    pending += [(path.name, torch.load(path, weights_only=False)) for path in newest.glob("custom_checkpoint_*.pkl")]
    while pending:
        name, value = pending.pop()
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, dict):
            pending += [(f"{name}/{key}", part) for key, part in value.items()]
    return tensors


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_bitwise(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def test_a_prior_learns_and_beats_the_unigram(write_codes, tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    codes = write_codes(tmp_path / "codes", 240)
    out = run(codes, tmp_path / "run", "steps=200", "log_every=50", "checkpoint_every=200", "evaluate_every=100")
    last = log(out)[-1]
    # 0.9 + 0.1 / 16 of the codes follow the rule: about 0.84 bits, and 4 for the first code
    assert last["held_out/bits_per_token"] < 0.6 * last["unigram/bits_per_token"]
    assert last["unigram/bits_per_token"] == pytest.approx(4, abs=0.1)
    said = caplog.text
    assert "the prior beats it by" in said  # half-way
    assert "192 rows" in said and "48 held out" in said
    loaded = prior.load(out)
    assert loaded.config.label_names == ("cat", "dog", "fox")
    assert loaded.config.fingerprint == read_codes(codes).fingerprint
    found = score(str(out), device="cpu")
    assert found.bits_per_token == pytest.approx(last["held_out/bits_per_token"], abs=1e-4)
    assert found.unigram == pytest.approx(last["unigram/bits_per_token"], abs=1e-6)
    assert (found.images, found.tokens) == (48, 48 * loaded.layout.length)
    # A class it was not told costs bits: the condition is used.
    shards = read_codes(codes)
    rows = Data(load_recipe("gpt-tiny", codes, SMALL)).held_rows
    shards = shards.renumbered(("fox", "cat", "dog"), "the prior")
    assert bits_per_token(loaded, shards, rows, 16) > found.bits_per_token + 0.2


def test_the_measure_of_a_prior_that_knows_nothing(codes: Path, tmp_path: Path) -> None:
    recipe = load_recipe("gpt-tiny", codes, SMALL)
    data = Data(recipe)
    blank = prior.create("gpt-tiny", data.shards.layout)
    with torch.no_grad():
        blank.network.head.weight.zero_()
    for size in (5, 64):
        assert bits_per_token(blank.train(), data.shards, data.held_rows, size) == pytest.approx(4, abs=1e-5)
    assert blank.training


def test_unigram_and_entropy_are_the_formulas() -> None:
    train_, held = [np.array([3, 1, 0, 0]), np.array([5, 0])], [np.array([2, 1, 1, 0]), np.array([1, 1])]
    expected = -(2 * math.log2(4 / 8) + math.log2(2 / 8) + math.log2(1 / 8) + math.log2(6 / 7) + math.log2(1 / 7)) / 6
    assert unigram(train_, held) == pytest.approx(expected)
    assert entropies(held) == pytest.approx((1.5, 1.0))


def test_the_split_follows_the_keys() -> None:
    keys = [f"folder/{i}.png" for i in range(200)]
    train_, held = split(keys, 0.1, 1000)
    assert sorted([*train_, *held]) == list(range(200)) and len(held) == 20
    names = {keys[row] for row in held}
    _, again = split(keys[::-1], 0.1, 1000)
    assert {keys[::-1][row] for row in again} == names
    assert len(split(keys, 0.5, 7)[1]) == 7
    assert [len(rows) for rows in split(keys[:2], 0.01, 7)] == [1, 1]
    with pytest.raises(ValueError, match="cannot be split"):
        split(keys[:1], 0.1, 7)


def test_held_out_codes_are_never_trained_on(codes: Path) -> None:
    recipe = load_recipe("gpt-tiny", codes, SMALL)
    data = Data(recipe)
    data.shards.array = np.repeat(np.arange(60)[:, None], 16, axis=1)  # every image's codes say which it is
    stream = data.batches(recipe, 0, 0, 1)
    seen = [row for _ in range(6) for row in next(stream)["tokens"][:, 0].tolist()]
    assert sorted([*seen, *data.held_rows.tolist()]) == list(range(60))  # one epoch: each of the others once
    batch = next(data.batches(recipe, 3, 0, 1))
    assert batch["tokens"][:, 0].tolist() == seen[24:32]
    assert torch.equal(batch["labels"], batch["tokens"][:, 0] % 3)


def test_a_folder_of_its_own_to_measure_on(codes: Path, write_codes, tmp_path: Path) -> None:
    test = write_codes(tmp_path / "test", 20, seed=1)
    data = Data(load_recipe("gpt-tiny", codes, [*SMALL, f"held_out_codes={test}"]))
    assert (len(data.rows), len(data.held_rows)) == (60, 20)
    assert data.held.folder == test
    other = write_codes(tmp_path / "other", 20, fingerprint="f" * 64)
    with pytest.raises(ValueError, match=r"another tokenizer.*ffffffff"):
        Data(load_recipe("gpt-tiny", codes, [*SMALL, f"held_out_codes={other}"]))


def test_held_out_classes_are_found_by_name(codes: Path, write_codes, tmp_path: Path) -> None:
    labels = np.arange(20) % 2
    fewer = write_codes(tmp_path / "fewer", 20, labels=labels, label_names=["fox", "cat"])
    data = Data(load_recipe("gpt-tiny", codes, [*SMALL, f"held_out_codes={fewer}"]))
    assert data.held.label_names == data.shards.label_names == ("cat", "dog", "fox")
    assert data.held.labels.tolist() == [2, 0] * 10
    assert read_codes(fewer).labels.tolist() == labels.tolist()

    unknown = write_codes(tmp_path / "unknown", 20, labels=labels, label_names=["cat", "emu"])
    bare = write_codes(tmp_path / "bare", 20, label_names=None)
    for folder, problem in ((unknown, "class 'emu', which .* does not have"), (bare, "only numbers them")):
        with pytest.raises(ValueError, match=problem) as error:
            Data(load_recipe("gpt-tiny", codes, [*SMALL, f"held_out_codes={folder}"]))
        assert str(folder) in str(error.value) and "\n" not in str(error.value)
        Data(load_recipe("gpt-tiny", codes, [*SMALL, f"held_out_codes={folder}", "model.condition=none"]))
    # A class that is named but has no images here is no obstacle.
    named = write_codes(tmp_path / "named", 20, labels=labels * 0, label_names=["dog", "emu"])
    data = Data(load_recipe("gpt-tiny", codes, [*SMALL, f"held_out_codes={named}"]))
    assert set(data.held.labels.tolist()) == {1}


def test_a_prior_finds_the_classes_of_codes_by_name(codes: Path, write_codes, tmp_path: Path) -> None:
    out = run(codes, tmp_path / "run")
    same = write_codes(tmp_path / "same", 20, seed=3)
    labels = read_codes(same).labels.numpy()
    turned = write_codes(tmp_path / "turned", 20, seed=3, labels=2 - labels, label_names=["fox", "dog", "cat"])
    found = [score(str(out), str(folder), device="cpu") for folder in (same, turned)]
    assert found[0] == found[1]
    unknown = write_codes(tmp_path / "unknown", 20, label_names=["cat", "dog", "emu"])
    with pytest.raises(ValueError, match=r"unknown holds images of class 'emu', which .*run does not have"):
        score(str(out), str(unknown), device="cpu")


def test_captions_reach_the_batch(write_codes, tmp_path: Path) -> None:
    folder = write_codes(tmp_path / "codes", 30)
    assert (
        next(Data(load_recipe("gpt-tiny", folder, SMALL)).batches(load_recipe("gpt-tiny", folder, SMALL), 0, 0, 1))[
            "captions"
        ]
        is None
    )
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        texts = [[f"{key}!", "two"] if key[-1] in "02468" else None for key in table["key"].to_pylist()]
        pq.write_table(table.append_column("captions", pa.array(texts, pa.list_(pa.string()))), path)
    recipe = load_recipe("gpt-tiny", folder, SMALL)
    data = Data(recipe)
    keys, codes = data.shards.keys, data.shards.codes.tolist()
    batch = next(data.batches(recipe, 0, 0, 1))
    assert len(batch["captions"]) == 8 and {len(texts) for texts in batch["captions"]} == {0, 2}
    for tokens, captions in zip(batch["tokens"].tolist(), batch["captions"], strict=True):
        key = keys[codes.index(tokens)]
        assert captions == ((f"{key}!", "two") if key[-1] in "02468" else ())


def test_resuming_is_bitwise_never_having_stopped(codes: Path, tmp_path: Path) -> None:
    whole = run(codes, tmp_path / "whole", "evaluate_every=3")
    run(codes, tmp_path / "parts", "evaluate_every=3", "steps=3")
    parts = run(codes, tmp_path / "parts", "evaluate_every=3")
    assert_bitwise(everything(whole), everything(parts))
    keys = [name for name in log(whole)[-1] if name != "images_per_second"]
    assert [[line.get(key) for key in keys] for line in log(whole)][-2:] == [
        [line.get(key) for key in keys] for line in log(parts)
    ][-2:]
    assert_bitwise(everything(parts), everything(run(codes, tmp_path / "parts", "evaluate_every=3")))


def test_micro_batches_add_up_to_the_batch(codes: Path, tmp_path: Path) -> None:
    same = ("model.label_dropout=0", "optimizer={kind: sgd, lr: 0.1}")
    one = everything(run(codes, tmp_path / "one", *same))
    two = everything(run(codes, tmp_path / "two", "accumulate=2", *same))
    for name in (name for name in one if name.startswith("model/")):
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-5)


def _run_in_process(rank: int, world: int, codes: Path, out: Path, overrides: tuple[str, ...]) -> None:
    run(codes, out, *overrides)


def test_two_processes_equal_one(codes: Path, tmp_path: Path) -> None:
    same = ("model.label_dropout=0", "optimizer={kind: sgd, lr: 0.1}")
    one = everything(run(codes, tmp_path / "one", *same))
    in_processes(2, _run_in_process, codes, tmp_path / "two", same)
    two = everything(tmp_path / "two")
    for name in (name for name in one if name.startswith("model/")):
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-5)
    for name in ("bits_per_token", "held_out/bits_per_token", "unigram/bits_per_token"):
        assert log(tmp_path / "two")[-1][name] == pytest.approx(log(tmp_path / "one")[-1][name], abs=1e-5)


def test_every_parameter_gets_a_gradient(codes: Path) -> None:
    from prior.model import Prior

    recipe = load_recipe("gpt-tiny", codes, [*SMALL, "model.label_dropout=0"])
    data = Data(recipe)
    task = PriorTask(recipe, Prior(configure(recipe, data)), data)
    batch = next(data.batches(recipe, 0, 0, 1))
    task.prior.logits(batch["tokens"], batch["labels"]).logsumexp(-1).sum().backward()
    assert not [name for name, parameter in task.prior.named_parameters() if parameter.grad is None]
    groups = task.optimizers["prior"].param_groups
    decays = {parameter.ndim: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decays == {1: 0.0, 2: 0.05}


def test_classes_are_found_in_the_codes(write_codes, tmp_path: Path) -> None:
    def condition(folder: Path, *overrides: str):
        recipe = load_recipe("gpt-tiny", folder, [*SMALL, *overrides])
        return configure(recipe, Data(recipe)).condition

    named = write_codes(tmp_path / "named", 30)
    told = condition(named, "model.label_dropout=0.3")
    assert told == ClassConfig(num_classes=3, dropout=0.3, label_names=("cat", "dog", "fox"))
    assert condition(named, "model.condition=none").kind == "none"
    labels = np.arange(30) % 4 - 1
    partly = write_codes(tmp_path / "partly", 30, labels=labels)
    assert condition(partly).kind == "none"
    with pytest.raises(ValueError, match=r"8 images of .*partly have no class"):
        condition(partly, "model.condition=class")


def test_pictures_need_the_tokenizer(codes: Path, write_codes, tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    out = run(codes, tmp_path / "run", "image_every=3")
    assert sorted(path.name for path in (out / "images").iterdir()) == ["0000003.png", "0000006.png"]
    lost = write_codes(tmp_path / "codes", 30, tokenizer=str(tmp_path / "gone" / "far"))
    out = run(lost, tmp_path / "lost", "image_every=3")
    assert not (out / "images").exists()
    assert "no pictures" in caplog.text


def test_refusals(codes: Path, write_codes, tokenizer: Path, other_tokenizer: Path, tmp_path: Path) -> None:
    out = run(codes, tmp_path / "run")
    own = read_codes(codes).fingerprint[:8]
    other = write_codes(tmp_path / "other", 30, fingerprint="e" * 64, tokenizer=None)
    with pytest.raises(ValueError, match=f"another tokenizer .eeeeeeee. than the run .*run was begun with .{own}"):
        run(other, out)
    with pytest.raises(ValueError, match=f"another tokenizer .{own}. than {other_tokenizer} "):
        run(codes, tmp_path / "new", f"tokenizer={other_tokenizer}")
    with pytest.raises(ValueError, match=f"another tokenizer .eeeeeeee. than {tokenizer} .{own}"):
        run(other, tmp_path / "new", f"tokenizer={tokenizer}")
    # The tokenizer went on training after it encoded: its codes are no longer these.
    moved = save_tokenizer(tmp_path / "moved", 1)
    stale = write_codes(tmp_path / "stale", 30, tokenizer=str(moved))
    save_tokenizer(moved, 3)
    with pytest.raises(ValueError, match="another tokenizer"):
        run(stale, tmp_path / "new")
    with pytest.raises(ValueError, match=r"differs in model\.network\.layers \(2, now 3\): give another"):
        run(codes, out, "model.network.layers=3", "optimizer.lr=1e-3")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json|gone"):
        run(codes, tmp_path / "new", f"tokenizer={tmp_path / 'gone'}")
    with pytest.raises(FileNotFoundError, match=r"codes\.json"):
        run(tmp_path / "nothing", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="another tokenizer"):
        score(str(out), str(other), device="cpu")


def test_a_killed_signal_leaves_a_run_to_go_on_with(codes: Path, tmp_path: Path, monkeypatch) -> None:
    import os
    import signal

    from tokenizers_vq.training.loop import Interrupted

    whole = everything(run(codes, tmp_path / "whole"))
    step: Callable = PriorTask.step

    def interrupted(self, batch, number, accelerator):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, number, accelerator)

    with monkeypatch.context() as patch:
        patch.setattr(PriorTask, "step", interrupted)
        with pytest.raises(Interrupted):
            run(codes, tmp_path / "run")
    assert_bitwise(whole, everything(run(codes, tmp_path / "run")))


def test_views_of_an_image_stay_on_one_side() -> None:
    keys = [f"{number}" for number in range(50) for _ in range(10)]
    train, held = split(keys, 0.1, 1000)
    assert len(train) + len(held) == 500 and len(held) == 50
    assert not {keys[row] for row in train} & {keys[row] for row in held}
    assert len(split(keys, 0.5, 30)[1]) == 30


class _FedConfig(GptConfig):
    fed_vectors = True

    def build(self, sequence: Sequence, book: Quantizer | None = None) -> _Fed:
        return _Fed(sequence, book, **self.arguments())


class _Fed(Gpt):
    """Adds the vectors of the tokenizer's codes to its own."""

    def __init__(self, sequence: Sequence, book: Quantizer | None, **fields: Any) -> None:
        super().__init__(sequence, **fields)
        assert book is not None
        self.book = book
        self.project = nn.Linear(book.dim, self.config.dim)

    def embed(self, tokens: Tensor, first: int = 0, order: Tensor | None = None) -> Tensor:
        return super().embed(tokens, first, order) + self.project(self.book.lookup(tokens).movedim(1, -1))


def test_a_network_that_is_fed_vectors_keeps_the_tokenizer_s_quantizer(
    codes: Path, write_codes, tokenizer: Path, tmp_path: Path
) -> None:
    fed = _FedConfig(layers=2, dim=32, heads=2, multiple=16)

    def recipe_of(folder: Path) -> PriorRecipe:
        recipe = load_recipe("gpt-tiny", folder, [*SMALL, "steps=2"])
        return recipe.replace(model=recipe.model.replace(network=fed))

    train(recipe_of(codes), tmp_path / "run", device="cpu")
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    book = tvq.load(tokenizer).quantizer.state_dict()
    assert book and all(torch.equal(saved[f"network.book.{name}"], value) for name, value in book.items())
    lost = write_codes(tmp_path / "codes", 30, tokenizer=str(tmp_path / "gone" / "far"))
    with pytest.raises(FileNotFoundError, match="say where it is now with --tokenizer"):
        train(recipe_of(lost), tmp_path / "lost", device="cpu")
    config = prior.load(run(codes, tmp_path / "plain", "steps=1")).config
    with pytest.raises(ValueError, match="book: a gpt network needs the tokenizer's quantizer"):
        config.replace(network=fed)
    with pytest.raises(ValueError, match="book: a gpt network takes no quantizer"):
        config.replace(book=tvq.load(tokenizer).config.quantizer)


def test_a_prior_goes_on_with_its_codes_wherever_they_lie(
    write_codes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = write_codes(tmp_path / "codes", 60)
    out = run(codes, tmp_path / "run", "steps=2")
    monkeypatch.chdir(tmp_path)
    run(Path("./run/../codes"), out, "steps=3")  # the same folder in other words
    shutil.copytree(codes, tmp_path / "moved")
    run(tmp_path / "moved", out, "steps=4")
    assert read_yaml(out / "recipe.yaml")["codes"] == str(tmp_path / "moved")
    before = (out / "recipe.yaml").read_bytes()
    other = write_codes(tmp_path / "other", 60, seed=9)
    with pytest.raises(ValueError, match=rf"^{other} holds other codes than the run .* began with: codes-.*parquet"):
        run(other, out, "steps=5")
    assert (out / "recipe.yaml").read_bytes() == before


def test_a_prior_of_before_goes_on_where_its_codes_were(codes: Path, write_codes, tmp_path: Path) -> None:
    """Older runs kept the number of rows alone."""
    out = run(codes, tmp_path / "run", "steps=2")
    size = json.loads((out / "data.json").read_text())["size"]
    (out / "data.json").write_text(json.dumps({"size": size}) + "\n")
    shutil.copytree(codes, tmp_path / "moved")
    with pytest.raises(ValueError, match="differs in codes"):
        run(tmp_path / "moved", out, "steps=3")
    run(codes, out, "steps=3")
    assert json.loads((out / "data.json").read_text())["codes"]["files"] == len(list(codes.glob("*.parquet")))
