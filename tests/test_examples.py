"""Every example runs from its first line to its last, on a handful of small pictures."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import tokenizers_vq as tvq
from tests.conftest import ROOT, shared

EXAMPLES = ROOT / "examples"
_NETWORK = "{kind: vqgan, width: 8, multipliers: [1, 2], blocks: 1, attention: [], groups: 4, latent_width: 8}"
TINY = [
    "model.image_size=16",
    f"model.encoder={_NETWORK}",
    f"model.decoder={_NETWORK}",
    "model.quantizer={kind: vector, num_codes: 32, dim: 4, distance: cosine}",
    "losses=[{kind: l1}]",
    "adversary=null",
    "precision=fp32",
    "batch_size=4",
    "steps=4",
    "log_every=2",
    "image_every=0",
    "data.workers=0",
]

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """A process trains in one precision; the tests of this process train in several."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example as `python examples/NAME ARGUMENTS` does; returns what it printed."""

    def go(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return go


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures in two folders, which are their classes."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(12):
        kind = folder / ("coarse" if i % 2 else "fine")
        kind.mkdir(exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        coarse.resize((24, 20), Image.Resampling.BICUBIC).save(kind / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved, untrained tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    overrides = [override.removeprefix("model.") for override in TINY if override.startswith("model.")]
    tvq.create("vqgan-tiny-64", overrides).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codes(photos: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures' codes."""
    from tokenizers_vq import BatchEncoder
    from tokenizers_vq.data import DataConfig
    from tokenizers_vq.data.shards import write_codes

    folder = tmp_path_factory.mktemp("codes")
    write_codes(BatchEncoder(model, device="cpu"), DataConfig(path=str(photos)), folder)
    return folder


def test_encode_decode_folder(run: Run, photos: Path, model: Path, tmp_path: Path) -> None:
    said = run("encode_decode_folder.py", model, photos, tmp_path)
    assert f"12 images of 64 codes in {tmp_path / 'codes'}" in said
    pictures = sorted((tmp_path / "decoded").glob("*.png"))
    assert len(pictures) == 12
    with Image.open(pictures[0]) as picture:
        assert picture.size == (16, 16)


def test_train_tokenizer(run: Run, photos: Path, tmp_path: Path) -> None:
    said = run("train_tokenizer.py", photos, tmp_path / "run", *TINY)
    assert "64 codes of 32 an image" in said
    assert "at step 2" in said and "at step 4" in said


def test_doctor(run: Run, photos: Path, tmp_path: Path) -> None:
    small = ["model.image_size=16", "model.encoder.width=8", "model.decoder.width=8", "steps=4", "log_every=2"]
    said = run("doctor.py", photos, tmp_path, *small, "data.workers=0", "ema=null")
    assert said.count("\n--- ") == 4
    assert "the l1 loss has weight 0" in said


def test_probes(run: Run, photos: Path, tmp_path: Path) -> None:
    small = [
        "model.encoder.width=8",
        "model.decoder.width=8",
        "steps=2",
        "batch_size=4",
        "log_every=1",
        "data.workers=0",
    ]
    said = run("ablations/probes.py", photos, photos, tmp_path, *small)
    rows = re.findall(r"^(\w+): PSNR [\d.]+ dB; domain by chance 50.0%; .*class by chance 50.0%; ", said, re.MULTILINE)
    assert rows == ["without", "attribute_reversal", "feature_alignment"]
    table = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "train.parquet"), split="train", cache_dir=tmp_path
    )
    plain, noisy = (tvq.images.read(table[i]["image"]) for i in range(2))
    assert table["domain"][:4] == [0, 1, 0, 1] and table["label"][0] == table["label"][1]
    inside = (plain.abs() < 0.7).all(dim=1, keepdim=True).expand_as(plain)  # where nothing is clipped
    assert abs((noisy - plain)[inside].std() * 255 / 2 - 10) < 0.5


def test_upscale(run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVQ_LPIPS_SQUEEZE", str(shared("data/backbones/squeezenet1_1_fp16.pth")))
    said = run("upscale.py", photos, photos, tmp_path / "rows.png", 2)
    torch.set_grad_enabled(True)
    figures = re.findall(r"(.*): PSNR ([\d.]+) dB, LPIPS-squeeze ([\d.]+), feature distance ([\d.]+)", said)
    assert [name for name, *_ in figures] == ["bicubic", "U-Net"]
    bicubic, rows = figures[0], tvq.images.read(tmp_path / "rows.png")
    assert rows.shape == (1, 3, 3 * 64, 8 * 64)
    # 24x20 pictures at 64 px hold no more than 32 px do: bicubic is near the original.
    assert float(bicubic[1]) > 25 and float(bicubic[2]) < 0.1 < abs(float(figures[1][1]) - float(bicubic[1]))
    assert len((EXAMPLES / "upscale.py").read_text().splitlines()) < 60


def test_usage_report(run: Run, photos: Path, model: Path, tmp_path: Path) -> None:
    said = run("usage_report.py", model, photos, tmp_path)
    assert "of 32 codes occur" in said
    assert "<html" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["data"]["images"] == 12


@pytest.mark.parametrize(
    ("name", "count", "narrow"),
    [
        ("vqvae2-tiny-64", 2, ["image_size=32"]),
        ("var-tiny-64", 6, ["encoder.latent_width=8", "decoder.latent_width=8"]),
        ("rqvae-tiny-64", 4, ["encoder.latent_width=8", "decoder.latent_width=8", "image_size=16"]),
    ],
)
def test_mix(run: Run, photos: Path, tmp_path: Path, name: str, count: int, narrow: list[str]) -> None:
    import torch

    import tokenizers_vq as tvq

    tvq.create(name, [*narrow, "encoder.width=8", "decoder.width=8"]).save_pretrained(tmp_path / "model")
    first, second = sorted(photos.rglob("*.png"))[:2]
    said = run("mix.py", tmp_path / "model", first, second, tmp_path / "mix.png")
    assert f"{count + 1} pictures of {count} {'levels' if name.startswith('rq') else 'grids'}" in said
    tokenizer = tvq.load(tmp_path / "model")
    side = tokenizer.config.size[0]
    with Image.open(tmp_path / "mix.png") as picture:
        assert picture.size == ((side + 2) * (count + 1) + 2, side + 4)
        shown = np.asarray(picture.convert("RGB"))
    for path, left in ((first, 2), (second, (side + 2) * count + 2)):
        with torch.no_grad():
            whole = tokenizer.decode(tokenizer.encode(tvq.images.read(path, size=tokenizer.config.image_size)))
        assert (np.asarray(tvq.images.to_pil(whole[0])) == shown[2:-2, left : left + side]).all()


def test_mix_refuses_a_tokenizer_of_one_grid(run: Run, photos: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has one grid of one level"):
        run("mix.py", model, *sorted(photos.rglob("*.png"))[:2], tmp_path / "mix.png")


def shown(path: Path, side: int, columns: int, row: int) -> np.ndarray:
    """The pictures of one row of a grid with 2 pixels between, uint8 `(columns, side, side, 3)`."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    top, lefts = 2 + row * (side + 2), (2 + column * (side + 2) for column in range(columns))
    return np.stack([pixels[top : top + side, left : left + side] for left in lefts])


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_interpolate(run: Run, photos: Path, tmp_path: Path, distance: str) -> None:
    import tokenizers_vq as tvq

    overrides = [override.removeprefix("model.") for override in TINY if override.startswith("model.")]
    tvq.create("vqgan-tiny-64", [*overrides, f"quantizer.distance={distance}"]).save_pretrained(tmp_path / "model")
    pair, out = sorted(photos.rglob("*.png"))[:2], tmp_path / "between.png"
    said = run("interpolate.py", tmp_path / "model", *pair, out, 3)
    rows = ["pixels", "straight", *(["arc"] if distance == "cosine" else []), "codes"]
    assert said.startswith(", ".join(rows))
    tokenizer = tvq.load(tmp_path / "model")
    ends = [tvq.images.read(path, size=16) for path in pair]
    middle = tvq.images.to_uint8((ends[0][0] + ends[1][0]) / 2).permute(1, 2, 0).numpy()
    assert abs(shown(out, 16, 3, 0)[1].astype(int) - middle).max() <= 1
    found = shown(out, 16, 3, len(rows) - 1)
    for end, column in zip(ends, (0, 2), strict=True):
        whole = tokenizer.decode(tokenizer.encode(end))[0]
        assert (found[column] == np.asarray(tvq.images.to_pil(whole))).all()


def test_the_arc_turns_evenly_and_keeps_length() -> None:
    import torch

    arc = runpy.run_path(str(EXAMPLES / "interpolate.py"), run_name="module")["arc"]
    ends = torch.nn.functional.normalize(torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    between = arc(ends[:1], ends[1:], torch.linspace(0, 1, 5))
    assert torch.allclose(between[[0, 4]], ends, atol=1e-5)
    assert torch.allclose(between.norm(dim=1), torch.ones(()), atol=1e-5)
    turns = (between[1:] * between[:-1]).sum(dim=1).acos()
    assert torch.allclose(turns, turns[:1].expand_as(turns), atol=1e-3)


def test_latent_diffusion(run: Run, photos: Path, model: Path, tmp_path: Path) -> None:
    run("latent_diffusion.py", model, photos, tmp_path / "drawn.png", 3, 32)
    drawn, coded = (np.concatenate([shown(tmp_path / "drawn.png", 16, 8, row + i) for i in (0, 1)]) for row in (0, 2))
    assert drawn.std() > 0 and (drawn != coded).any()
    assert abs(drawn.astype(int) - coded).mean() < abs(drawn.astype(int) - coded[::-1]).mean()


def test_train_prior_and_sample(run: Run, codes: Path, tmp_path: Path) -> None:
    small = ["model.network.layers=1", "model.network.dim=32", "batch_size=4", "held_out=0.3", "image_every=0"]
    said = run("train_prior_and_sample.py", codes, tmp_path / "run", *small, "steps=2", "precision=fp32")
    assert "bits per token on held-out codes, unigram" in said
    with Image.open(tmp_path / "run" / "samples.png") as picture:
        assert picture.size == (74, 74)  # 4x4 of 16 pixels, 2 between


@pytest.mark.parametrize("told", ["grey", "8"])
def test_picture_to_picture(run: Run, photos: Path, model: Path, tmp_path: Path, told: str) -> None:
    small = ["model.network={kind: gpt, layers: 1, dim: 32, heads: 2, multiple: 16}", "batch_size=4", "steps=2"]
    fields = [*small, "precision=fp32", "image_every=0", "data.workers=0", "held_out=0.3"]
    said = run("picture_to_picture.py", told, model, photos, tmp_path / "run", *fields)
    assert "bits per token on photos held out" in said
    with Image.open(tmp_path / "run" / "pictures.png") as picture:
        assert picture.size[0] == 5 * 18 + 2


def test_codes_for_transformers(run: Run, codes: Path, tmp_path: Path) -> None:
    run("codes_for_transformers.py", codes, tmp_path, 2, 32)
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (64, 16)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["vocab_size"], config["n_positions"]) == (33, 65)


@pytest.mark.parametrize("which", ["stand-ins", "shipped"])
def test_offline(run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    import prior
    import tokenizers_vq as tvq
    from tests.stand_ins import ship_stand_ins

    names = ("vit-vqgan-tiny-64", "gpt-tiny-imagenet-64")
    if which == "stand-ins":
        places = tmp_path / "tokenizers", tmp_path / "priors"
        ship_stand_ins(*places, tmp_path / "runs", names)
        monkeypatch.setattr("tokenizers_vq.tokenizer.WEIGHTS", places[0])
        monkeypatch.setattr("prior.model.WEIGHTS", places[1])
    elif names[0] not in tvq.list_models("shipped") or names[1] not in prior.list_models("shipped"):
        pytest.skip(f"the package does not bring {' and '.join(names)} yet")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it asked the network"))
    said = run("offline.py", next(photos.rglob("*.png")), tmp_path / "out")
    assert f"reconstruction.png and 4 new pictures of 'goldfish' in {tmp_path / 'out'}" in said
    size = tvq.load(names[0]).config.size
    for name in ("reconstruction", *(f"goldfish-{number}" for number in range(4))):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert picture.size == size


def test_encoder_takes_what_ray_passes(photos: Path, model: Path, codes: Path) -> None:
    """Ray's numpy batches hold bytes in object arrays; the codes are those of the shards."""
    from tokenizers_vq import BatchEncoder
    from tokenizers_vq.data.shards import read_codes

    shards = read_codes(codes)
    paths = np.array(shards.keys, dtype=object)
    contents = np.array([(photos / path).read_bytes() for path in paths], dtype=object)
    encoder = BatchEncoder(str(model), device="cpu", image_column="bytes", on_broken="skip")
    result = encoder({"bytes": contents, "path": paths})
    assert (result["codes"] == shards.codes.numpy()).all()
    assert set(result["fingerprint"]) == {shards.fingerprint}


def test_complete_images(run: Run, photos: Path, tmp_path: Path) -> None:
    pictures = sorted(photos.rglob("*.png"))[:2]
    out = tmp_path / "out.png"
    told = ("--class", "goldfish", "guidance=2", "window=8")
    said = run("complete_images.py", "gpt-tiny-imagenet-64", out, *pictures[:1], *told)
    assert "144 of 256 codes drawn anew" in said and "draws codes in order" in said
    assert Image.open(out).size == (6 * 66 + 2, 2 * 66 + 2)


def test_examples_are_short_and_tested() -> None:
    tested = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        if path.name not in ("demo.py", "ship.py"):  # ship.py: tests/test_shipping.py
            assert len(path.read_text().splitlines()) < 60, path.name
            assert f'"{path.name}"' in tested, path.name
    assert all(path.name in (EXAMPLES / "README.md").read_text() for path in EXAMPLES.glob("*.py"))


def test_demo_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    demo = runpy.run_path(str(EXAMPLES / "demo.py"), run_name="demo")
    ran: list[list[str]] = []

    def pretend(command: list[str]) -> subprocess.CompletedProcess[str]:
        ran.append(command[3:])
        return subprocess.CompletedProcess(command, 2 if "broken" in command else 0)

    monkeypatch.setattr(subprocess, "run", pretend)

    def go(*verbs: str) -> list[list[str]]:
        ran.clear()
        commands = demo["Commands"](tmp_path / "demo" / "commands.txt")
        for verb in verbs:
            commands.run("tvq", verb)
        return ran

    with pytest.raises(SystemExit, match="2"):
        go("train", "broken", "report")
    assert go("train", "evaluate", "report") == [["evaluate"], ["report"]]
    assert go("train", "evaluate", "report") == []
    assert go("train", "encode", "report") == [["encode"], ["report"]], "what follows a new command runs again"
