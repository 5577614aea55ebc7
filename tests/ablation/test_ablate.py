"""`tvq ablate`: what is refused before the first run, what a kill leaves, and what the table says."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.training.conftest import SMALL, pictures  # noqa: F401  (a fixture)
from tokenizers_vq.ablation import report, results, run, timing
from tokenizers_vq.ablation.judges import Judge, family, parse_judge, resemblance
from tokenizers_vq.ablation.table import Plan, TableConfig, load_table, make_plan
from tokenizers_vq.training import loop, runs

ROWS = {"l1": ["losses=[{kind: l1}]", "adversary=null"], "gan": []}


@pytest.fixture
def table(pictures: Path) -> dict:  # noqa: F811
    """A table's fields: two rows of the smallest recipe at two seeds."""
    return {
        "recipe": "vqgan-tiny-64",
        "overrides": [*SMALL, "steps=4", "checkpoint_every=2", "adversary.start=1", "adversary.warmup=0"],
        "rows": ROWS,
        "data": {"path": str(pictures), "workers": 0},
        "test": {"path": str(pictures), "limit": 9},
    }


@pytest.fixture
def few_judges(monkeypatch) -> None:
    """No network judges: what costs seconds a run is tested by itself."""
    monkeypatch.setattr(run.judging, "available", lambda judges, size: ((), {"lpips_squeeze": "no trunk"}))


def plan(table: dict, **changes) -> Plan:
    return make_plan(TableConfig(**{**table, **changes}))


def test_shipped_tables_are_valid_and_their_rows_equal_where_they_can_be() -> None:
    tables = sorted((ROOT / "examples" / "ablations").glob("*.yaml"))
    assert len(tables) == 14
    for path in tables:
        made = make_plan(load_table(path), path.parent)
        assert len(made.table.seeds) >= 2 and all(row.recipes[1].seed == 1 for row in made.rows)
        if path.stem not in ("codebooks", "code-dimension"):  # whose codebooks are of many sizes
            assert not any(row.unequal for row in made.rows), path.stem


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rows": {"a": [], "b": ["steps=5"]}}, "rows.b: differs from row 'a' in steps (5, not 4)"),
        ({"rows": {"a": [], "b": ["batch_size=4"]}}, "rows.b: differs from row 'a' in batch_size"),
        ({"rows": {"a": [], "b": ["data.flip=false"]}}, "rows.b: differs from row 'a' in data ("),
        ({"rows": {"a": [], "b": ["stepz=5"]}}, "rows.b: recipe vqgan-tiny-64: stepz: no such field; did you mean"),
        ({"rows": {"a": ["seed=3"]}}, "rows.a: 'seed=3' is set by the table's `seeds`"),
        ({"rows": {"a/b": []}}, "'a/b' becomes a folder"),
        ({"rows": {"a": {"overides": []}}}, "rows.a.overides: no such field; did you mean 'overrides'?"),
        ({"rows": {"a": {"recipe": "vqgan-tiny"}}}, "rows.a: no recipe 'vqgan-tiny'; did you mean"),
        ({"seeds": [1, 1]}, "seeds: each once"),
        ({"judges": ["tf_efficientnet_lite0/head"]}, "judges"),
        ({"judges": ["lpips/squeez", "a/b"]}, "did you mean 'squeeze'?"),
        ({"time_against": "gam"}, "time_against: the table has no row 'gam'; did you mean 'gan'?"),
        ({"time_against": "a", "rows": {"a": [], "b": ["precision=bf16"]}}, "rows.b: steps in bf16 and in fp32 cannot"),
    ],
)
def test_what_cannot_run_is_refused_by_name(table: dict, changes: dict, line: str) -> None:
    with pytest.raises(ValueError) as refused:
        plan(table, **changes)
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_the_command_line_sets_fields_of_the_table_and_of_every_row(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("recipe: vqvae-tiny-64\ntest: {limit: 9}\nrows: {a: [], b: ['losses=[{kind: l1}]']}\n")
    made = make_plan(load_table(path, ["data=skimage", "test=elsewhere", "seeds=[5]", "steps=7", "ema=null"]))
    assert [row.recipe.steps for row in made.rows] == [7, 7] and made.rows[1].recipe.ema is None
    assert (made.test.path, made.test.limit, list(made.rows[0].recipes)) == ("elsewhere", 9, [5])
    path.write_text("recipe: vqvae-tiny-64\nrows:\n  a:\n    - losses=[{kind: l1}]\n")
    with pytest.raises(ValueError, match=r"rows\.a: put quotes around"):
        load_table(path)


def test_unequal_networks_are_flagged_not_refused(table: dict) -> None:
    rows = {"a": [], "codes": ["model.quantizer.num_codes=2048"], "wide": ["model.encoder.blocks=3"]}
    _, codes, wide = plan(table, rows=rows).rows
    assert not codes.unequal and codes.differs == 0 and codes.parameters.codebook == 2048 * 4
    assert wide.unequal and wide.differs > 0.05
    assert wide.parameters.discriminator > 0


def test_a_dry_run_checks_everything_and_writes_nothing(table: dict, few_judges: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lines = run.due_runs(plan(table), out, only=["gan"], device="cpu", say=lambda text: None)
    assert lines == [f"gan, seed {seed}: {out / 'gan' / f'seed-{seed}'}" for seed in (0, 1)] and not out.exists()
    with pytest.raises(FileNotFoundError, match="no data at elsewhere"):
        run.due_runs(plan(table, test={"path": "elsewhere"}), out, say=lambda text: None)
    with pytest.raises(ValueError, match=r"rows\.a: .*nonesuch"):
        rows = {"a": ["losses=[{kind: perceptual, backbone: nonesuch}]"]}
        run.due_runs(plan(table, rows=rows), out, say=lambda text: None)


def test_a_row_that_does_not_fit_into_memory_is_noted(
    table: dict, few_judges: None, tmp_path: Path, monkeypatch
) -> None:
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB\nmore")

    monkeypatch.setattr(runs, "train", full)
    outcome = run.run_table(plan(table, seeds=[0]), tmp_path / "out", only=["l1"], device="cpu")
    assert outcome.failed == ("l1/seed-0: CUDA out of memory. Tried to allocate 20 MiB",)


def test_a_judge_that_a_loss_resembles_is_marked(table: dict) -> None:
    def marks(losses: str) -> list[str]:
        recipe = plan(table, rows={"a": [f"losses={losses}"]}).rows[0].recipe
        names = (
            "lpips/squeeze",
            "lpips/vgg",
            "tf_efficientnet_lite0/head",
            "tf_efficientnet_lite1/blocks.4",
            "vgg16/head",
        )
        return [resemblance(parse_judge(name), recipe) for name in names]

    assert marks("[{kind: l1}]") == ["", "", "", "", ""]
    assert marks("[{kind: lpips, net: squeeze}]") == ["same", "", "", "", ""]
    assert marks("[{kind: lpips, net: vgg}]") == ["", "same", "", "", "family"]
    assert marks("[{kind: perceptual}]") == ["", "", "family", "same", ""]
    assert marks("[{kind: gram, backbone: vgg16.tv_in1k}]") == ["", "family", "", "", "same"]
    assert marks("[{kind: l1}, {kind: perceptual, weight: 0.0}]") == ["", "", "", "", ""]
    with_backbone = (
        "{kind: augmented, discriminator: {kind: several, discriminators: [{kind: vision_aided}, {kind: unet}]}}"
    )
    adversary = f"adversary={{discriminator: {with_backbone}}}"
    recipe = plan(table, rows={"a": ["losses=[{kind: l1}]", adversary]}).rows[0].recipe
    names = ("lpips/squeeze", "tf_efficientnet_lite0/head", "tf_efficientnet_lite1/head")
    assert [resemblance(parse_judge(name), recipe) for name in names] == ["", "family", "same"]
    assert [family(name) for name in ("tf_efficientnet_lite0.in1k", "resnet50", "hf/vgg16")] == [
        "efficientnet",
        "resnet",
        "vgg",
    ]
    assert Judge("features", "resnet50", "head").metric == "feature_distance/resnet50/head"


def test_training_time_is_the_whole_run_at_the_rate_of_its_last_stretch(table: dict, tmp_path: Path) -> None:
    recipe = plan(table).rows[0].recipe.replace(steps=100, batch_size=8)
    assert results.seconds(tmp_path, recipe) is None  # no log
    # 10 images/s, a resume at step 50, then a slow first step whose weight in the cumulative rate falls
    logged = [(25, 10.0), (50, 10.0), (75, 16.0), (100, 20.0)]
    lines = [json.dumps({"step": step, "images_per_second": rate}) for step, rate in logged]
    stopped = json.dumps({"step": 100, "stopped": "why"})
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, stopped, '{"step": 1']))
    assert results.seconds(tmp_path, recipe) == 100 * 8 / 20


def test_runs_go_on_where_they_were_and_the_table_says_what_is_missing(
    table: dict, few_judges: None, tmp_path: Path, monkeypatch
) -> None:
    out, trained = tmp_path / "out", []
    train = runs.train

    def counted(recipe, folder, **options):
        trained.append(str(folder.relative_to(out)))
        return train(recipe, folder, **options)

    monkeypatch.setattr(runs, "train", counted)
    outcome = run.run_table(plan(table), out, only=["l1"], device="cpu")
    assert trained == ["l1/seed-0", "l1/seed-1"] and outcome == ((), ())
    partial = (out / "table.md").read_text()
    assert "Not there yet: gan/seed-0, gan/seed-1." in partial and "| l1 | 2/2 |" in partial
    threads = torch.get_num_threads()
    assert f"; cpu, {threads} thread{'' if threads == 1 else 's'}." in partial and "n = " not in partial

    def stopped(recipe, folder, **options):
        counted(recipe.replace(steps=2), folder, **options)
        raise loop.Interrupted(15, 2)

    monkeypatch.setattr(runs, "train", stopped)
    with pytest.raises(loop.Interrupted):
        run.run_table(plan(table), out, device="cpu")
    monkeypatch.setattr(runs, "train", counted)
    trained.clear()
    run.run_table(plan(table), out, device="cpu")
    assert trained == ["gan/seed-0", "gan/seed-1"]
    trained.clear()
    run.run_table(plan(table, rows={**ROWS, "more": ROWS["l1"], "yet": ROWS["l1"]}), out, device="cpu")
    assert trained == ["more/seed-0", "yet/seed-0", "more/seed-1", "yet/seed-1"]  # a whole comparison first
    with pytest.raises(ValueError, match=r"another recipe, which differs in optimizer\.lr"):
        run.run_table(plan(table, rows={**ROWS, "gan": ["optimizer.lr=0.1"]}), out, device="cpu")
    other = plan(table, rows={**ROWS, "l1": [*ROWS["l1"], "optimizer.lr=0.1"]})
    assert results.read_run(other, out, next(row for row in other.rows if row.name == "l1"), 0) is None
    with pytest.raises(ValueError, match="no row 'l3'"):
        run.run_table(plan(table), out, only=["l3"], device="cpu")

    found = json.loads((out / "results.json").read_text())
    both = [found["rows"]["l1"]["seeds"][seed]["figures"]["psnr"] for seed in "01"]
    assert found["rows"]["l1"]["mean"]["psnr"] == {"mean": sum(both) / 2, "half_range": abs(both[0] - both[1]) / 2}
    lines = list(csv.DictReader((out / "table.csv").open()))
    assert [line["row"] for line in lines] == ["l1", "gan", "more", "yet"]
    assert float(lines[0]["psnr"]) == pytest.approx(sum(both) / 2)
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 5 * 128 and grid.height > results.EXAMPLES * 128
    assert "left out LPIPS squeeze: no trunk" in (out / "table.md").read_text()

    judged = out / "gan/seed-0" / results.EVALUATION
    kept = json.loads(judged.read_text())
    for change, due in (
        ({"class_columns": None}, ["nothing is due"]),
        ({"limit": 5}, [f"gan, seed 0: {judged.parent}"]),
    ):
        asked = {name: value for name, value in {**kept["asked"]["data"], **change}.items() if value is not None}
        judged.write_text(json.dumps({**kept, "asked": {**kept["asked"], "data": asked}}))
        assert run.due_runs(plan(table), out, device="cpu", say=lambda text: None) == due, "older than a field, or not"
    judged.write_text(json.dumps(kept))
    older = yaml.safe_load((written := judged.parent / "recipe.yaml").read_text())
    del older["data"]["class_columns"]
    written.write_text(yaml.safe_dump(older))
    assert run.due_runs(plan(table), out, device="cpu", say=lambda text: None) == ["nothing is due"]
    judged.unlink()
    assert "- gan: n = 1 of 2 seeds so far (1)." in report.markdown(results.collect(plan(table), out))


def test_all_runs_begin_with_the_same_weights_which_a_folder_remembers(
    table: dict, few_judges: None, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for seed, folder in enumerate((first, second)):
        runs.train(plan(table).rows[0].recipe.replace(seed=7 + seed), folder, device="cpu")
    still = ["optimizer.lr=0.0", "ema=null", "model.quantizer.revive_after=null"]
    made = plan(table, rows={name: [*row, *still] for name, row in ROWS.items()}, init_from=str(first), seeds=[0])
    outcome = run.run_table(made, tmp_path / "out", device="cpu")
    assert outcome == ((), ())
    begun = load_file(first / "model" / "model.safetensors")
    begun = {name: weight for name, weight in begun.items() if "quantizer" not in name}  # its averages move without lr
    for row in ROWS:
        ended = load_file(tmp_path / "out" / row / "seed-0" / "model" / "model.safetensors")
        assert all(torch.equal(ended[name], begun[name]) for name in begun)
    assert run.due_runs(made, tmp_path / "out", device="cpu") == ["nothing is due"]
    other = TableConfig(**{**made.table.to_dict(), "init_from": str(second)})
    with pytest.raises(
        ValueError, match=r"began with another model, and init_from is now .*second: give another --out"
    ):
        run.due_runs(make_plan(other), tmp_path / "out", device="cpu")
    untrained = TableConfig(**{**made.table.to_dict(), "init_from": None})
    with pytest.raises(ValueError, match="init_from is now null"):
        run.run_table(make_plan(untrained), tmp_path / "out", device="cpu")
    run.run_table(make_plan(untrained), tmp_path / "new", device="cpu")
    with pytest.raises(ValueError, match="holds runs that began untrained"):
        run.run_table(made, tmp_path / "new", device="cpu")


def test_steps_are_timed_in_turn_with_the_row_that_is_named(
    table: dict, few_judges: None, tmp_path: Path, monkeypatch
) -> None:
    out, clock, taken = tmp_path / "out", [0.0], []

    class Counted(timing.TokenizerTask):  # three units of time a step of l1, one of gan, and ten while it warms up
        def step(self, batch, step, accelerator):
            name = "gan" if self.adversary is not None else "l1"
            taken.append((name, step))
            clock[0] += 10 if step < 16 else {"l1": 3, "gan": 1}[name]
            figures = super().step(batch, step, accelerator)
            assert name == "l1" or ("discriminator" in figures and "generator" in figures)  # at work
            return figures

    monkeypatch.setattr(timing, "TokenizerTask", Counted)
    monkeypatch.setattr(timing, "_now", lambda device: clock[0])
    made = plan(table, seeds=[0], time_against="gan")
    run.run_table(made, out, only=["gan"], device="cpu")
    found = json.loads((out / "results.json").read_text())["rows"]
    assert (found["l1"]["step_time"], found["gan"]["step_time"]) == (None, 1.0)
    taken.clear()
    run.run_table(made, out, device="cpu")
    assert taken == [(name, step) for step in range(13, 32) for name in ("l1", "gan")]
    assert json.loads((out / "results.json").read_text())["rows"]["l1"]["step_time"] == 3.0
    text = (out / "table.md").read_text()
    assert "| Step time ↓ |" in text and "over that of the row gan, timed in turn" in text
    assert [line["step_time"] for line in csv.DictReader((out / "table.csv").open())] == ["3.0000", "1.0000"]
    taken.clear()
    run.run_table(made, out, device="cpu")
    assert not taken  # timed once
    assert timing.read(plan(table, time_against="l1"), out, made.rows[0]) is None  # against another row


def test_a_row_that_diverges_is_noted_and_the_others_go_on(table: dict, few_judges: None, tmp_path: Path) -> None:
    rows = {"bad": ["optimizer={kind: sgd, lr: 1.0e+30}"], "good": []}
    made = plan(table, rows=rows, seeds=[0])
    outcome = run.run_table(made, tmp_path / "out", device="cpu")
    assert len(outcome.failed) == 1 and outcome.failed[0].startswith("bad/seed-0: ") and not outcome.missing
    text = (tmp_path / "out" / "table.md").read_text()
    assert "- failed: bad/seed-0: " in text and "| good | 1/1 |" in text
    assert "±" not in next(line for line in text.splitlines() if line.startswith("| good"))  # one seed has no spread


def test_two_judges_at_once(table: dict, tmp_path: Path) -> None:
    judges = ["tf_efficientnet_lite0/head", "tf_efficientnet_lite1/blocks.4"]
    losses = ["losses=[{kind: l1}, {kind: perceptual, stages: [0]}]", "model.image_size=32"]
    out = tmp_path / "out"
    made = plan(table, rows={"lite1": losses}, seeds=[0], judges=judges)
    run.run_table(made, out, device="cpu")
    row = json.loads((out / "results.json").read_text())["rows"]["lite1"]
    names = [parse_judge(judge).metric for judge in judges]
    assert all(row["mean"][name]["mean"] > 0 for name in names)
    assert row["resembles"] == dict(zip(names, ("family", "same"), strict=True))
    text = (out / "table.md").read_text()
    assert "‡ |" in text and "† |" in text and "layer blocks.4" in text
    assert "- lite1: every judge resembles a loss of this row; name another network in `judges`." in text
    assert "9 images for 1,280 features. With fewer images than features" in text


def test_two_processes_under_accelerate_launch_make_one_table(table: dict, tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump({**table, "overrides": [*table["overrides"], "accumulate=1"], "seeds": [0]}))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    judges = "judges=[lpips/squeeze,lpips_none/head]"  # neither is there, which costs no time
    command = [*launch, "-m", "tokenizers_vq", "ablate", str(path), judges, "--out", str(tmp_path / "out")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "TVQ_LPIPS_SQUEEZE": str(tmp_path / "absent")}
    done = subprocess.run([*command, "--device", "cpu"], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert all(row["done"] == 1 for row in found["rows"].values())
    assert found["rows"]["gan"]["seeds"]["0"]["data"]["images"] == 9  # each process judged its share
    checkpoint = json.loads((tmp_path / "out/gan/seed-0/checkpoints/4/checkpoint.json").read_text())
    assert checkpoint["processes"] == 2
