"""The road with one-dimensional codes: two stages of training, report, codes, prior, samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import prior
import tokenizers_vq as tvq
from prior.cli import main as prior_main
from tests.losses.test_proxy_codes import SMALL as PROXY
from tests.prior.conftest import SMALL
from tests.test_families_roads import pictures, run  # noqa: F401  (pictures is a fixture)
from tokenizers_vq.cli import main
from tokenizers_vq.data.shards import read_codes
from tokenizers_vq.networks.titok import TitokProxyDecoderConfig
from tokenizers_vq.training.recipe import load_recipe

TRUNK = "tokens: 6, width: 16, layers: 1, heads: 2, patch: 4"
NETWORK = "{width: 8, multipliers: [1, 1, 2], blocks: 1, groups: 4}"
TRAIN = ["steps=3", "precision=fp32", "data.workers=0", "image_every=3", "adversary=null", "batch_size=8"]
MODEL = ["model.image_size=16", f"model.encoder={{kind: titok, {TRUNK}}}", "model.quantizer.num_codes=16"]
TWO_STAGE = f"kind: titok_proxy, {TRUNK}, proxy_codes: 12, proxy_dim: 6, proxy: {NETWORK}"


def test_a_single_stage_from_training_to_samples(pictures: Path, tmp_path: Path) -> None:  # noqa: F811
    model = [*MODEL, f"model.decoder={{kind: titok, {TRUNK}}}", "losses=[{kind: l1}]"]
    run(
        main, "train", "titok-tiny-64", *model, *TRAIN, f"data={pictures}", "--out", tmp_path / "run", "--device", "cpu"
    )
    tokenizer = tvq.load(tmp_path / "run")
    layout = tokenizer.code_layout()
    assert layout.grids == ((6,),) and layout.sizes == (16,)

    measured = ["--data", pictures, "--lpips", "none", "--backbone", "none", "--device", "cpu"]
    run(main, "report", tmp_path / "run", *measured, "--out", tmp_path / "report")
    usage = json.loads((tmp_path / "report" / "report.json").read_text())["usage"]
    assert [stream["size"] for stream in usage["streams"]] == [16]
    assert "<img" in (tmp_path / "report" / "report.html").read_text()

    run(main, "encode", tmp_path / "run", pictures, "--out", tmp_path / "codes", "--device", "cpu")
    codes = read_codes(tmp_path / "codes")
    assert codes.layout == layout and len(codes) == 24
    run(main, "decode", tmp_path / "codes", "--out", tmp_path / "decoded", "--device", "cpu")
    assert len(list((tmp_path / "decoded").rglob("*.png"))) == 24
    run(main, "compare", tmp_path / "run", *measured, "--size", 16, "--out", tmp_path / "compared")

    small = [override for override in SMALL if not override.startswith("steps")]
    run(prior_main, "train", "gpt-tiny", tmp_path / "codes", *small, "steps=3", "--out", tmp_path / "prior")
    run(prior_main, "sample", tmp_path / "prior", "--out", tmp_path / "samples", "--grid", "1x2", "--codes")
    told = json.loads((tmp_path / "samples" / "samples.json").read_text())
    tokens = torch.tensor([entry["codes"] for entry in told["images"]])
    assert tokens.shape == (2, 6) and int(tokens.max()) < 16
    assert prior.load(tmp_path / "prior").layout == layout
    assert tokenizer.decode(layout.unflatten(tokens)).shape == (2, 3, 16, 16)


def test_two_stages_of_training(pictures: Path, tmp_path: Path) -> None:  # noqa: F811
    proxy = tvq.create("maskgit-f16-1024", PROXY)
    torch.nn.init.normal_(proxy.quantizer.weight)
    proxy.save_pretrained(tmp_path / "proxy")

    first = [*MODEL, f"model.decoder={{{TWO_STAGE}}}"]
    start = tvq.create("titok-tiny-64", [override.removeprefix("model.") for override in first])
    start.decoder.adopt(proxy.quantizer.codebook, proxy.decoder)
    start.save_pretrained(tmp_path / "start")
    common = [*TRAIN, f"data={pictures}", "--device", "cpu"]
    codes = [f"losses=[{{kind: proxy_codes, tokenizer: {tmp_path / 'proxy'}}}]", "--init-from", tmp_path / "start"]
    run(main, "train", "titok-tiny-64", *first, *common, *codes, "--out", tmp_path / "one")
    one = tvq.load(tmp_path / "one")
    assert torch.equal(one.decoder.codebook, proxy.quantizer.codebook)
    assert all(torch.equal(v, proxy.decoder.state_dict()[name]) for name, v in one.decoder.proxy.state_dict().items())
    assert not torch.equal(one.decoder.logits.weight, start.decoder.logits.weight)
    told = [json.loads(line) for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines()]
    assert all(0 < line["proxy_codes"] < 10 for line in told if "proxy_codes" in line)

    second = [*MODEL, f"model.decoder={{{TWO_STAGE}, stage: pixels}}", "losses=[{kind: l2}]", "train=decoder"]
    run(main, "train", "titok-tiny-64", *second, *common, "--init-from", tmp_path / "one", "--out", tmp_path / "two")
    two = tvq.load(tmp_path / "two")
    assert not torch.equal(two.decoder.proxy.head.weight, proxy.decoder.head.weight)
    assert not torch.equal(two.decoder.codebook, proxy.quantizer.codebook)
    assert two.fingerprint == one.fingerprint  # the codes of every image stay


def test_the_published_stages_train_one_model() -> None:
    first, second = (load_recipe(name, ["data=photos"]) for name in ("titok-b64", "titok-b64-decoder"))
    assert isinstance(first.model.decoder, TitokProxyDecoderConfig) and first.model.decoder.stage == "codes"
    assert first.model.replace(decoder=first.model.decoder.replace(stage="pixels")) == second.model
    assert second.train == "decoder"


def test_pixels_are_refused_where_codes_are_to_be_predicted(
    pictures: Path,  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    proxy = tvq.create("maskgit-f16-1024", PROXY)
    proxy.save_pretrained(tmp_path / "proxy")
    losses = f"losses=[{{kind: proxy_codes, tokenizer: {tmp_path / 'proxy'}}}]"
    model = [*MODEL, f"model.decoder={{kind: titok, {TRUNK}}}", losses]
    arguments = ["train", "titok-tiny-64", *model, *TRAIN, f"data={pictures}", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--device", "cpu"])
    assert stop.value.code == 2
    assert "give model.decoder.kind=titok_proxy with stage=codes, proxy_codes=12 and patch=4" in capfd.readouterr().err
