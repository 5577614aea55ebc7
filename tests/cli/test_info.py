"""What `tvq info` and `tvq models` say of presets, shipped, published and own models."""

from __future__ import annotations

import pytest

import tokenizers_vq as tvq
from tokenizers_vq.conversion import catalogue


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TVQ_CACHE", str(tmp_path / "cache"))


def _rows(text: str) -> dict[str, str]:
    return {line[2:22].strip(): line[22:] for line in text.splitlines()[1:]}


def test_models_lists_the_published_and_marks_what_is_by_hand(tvq_command, model) -> None:
    name, hand = "titok/l32", "taming/imagenet-f16-16384"
    words = [line.split()[0] for line in tvq_command("models").out.splitlines() if line.startswith("  ")]
    assert {name, f"{hand}*"} <= set(words)
    assert set(tvq.list_models("published")) == {word.rstrip("*") for word in words if "/" in word}
    tvq.load(model).save_pretrained(catalogue.converted(hand))
    assert f"  {hand} " in tvq_command("models").out


def test_a_folder_and_a_run(tvq_command, model, tmp_path) -> None:
    tokenizer = tvq.load(model)
    tokenizer.save_pretrained(tmp_path / "run" / "model", card={"licence": "MIT", "data": "my photographs"})
    for name in (tmp_path / "run", tmp_path / "run" / "model"):
        said = tvq_command("info", name)
        rows = _rows(said.out)
        assert said.status == 0 and rows["fingerprint"] == tokenizer.fingerprint
        assert rows["parameters"] == f"{sum(part.numel() for part in tokenizer.parameters()):,}"
        assert rows["codes"] == "64 an image (8x8) of 1,024" and rows["images"] == "32x32, 3 channels"
        assert (rows["data"], rows["licence of weights"]) == ("my photographs", "MIT")


def test_a_preset_and_a_shipped_model(tvq_command) -> None:
    rows = _rows(tvq_command("info", "vqgan-f16-16384").out)
    assert rows["codes"] == "256 an image (16x16) of 16,384" and "untrained" in rows["kind"]
    assert "fingerprint" not in rows
    rows = _rows(tvq_command("info", "vit-vqgan-tiny-64").out)
    assert rows["fingerprint"] == tvq.load("vit-vqgan-tiny-64").fingerprint
    assert "research and education" in rows["licence of weights"]


def test_a_published_model_before_and_after_it_is_converted(tvq_command, model) -> None:
    rows = _rows(tvq_command("info", "titok/l32").out)
    assert rows["code"] == "github.com/bytedance/1d-tokenizer, licence: Apache-2.0"
    assert rows["licence of weights"] == "not known" and rows["file"].endswith("sha256: not known")
    assert rows["rFID"] == "2.21: ImageNet 256 px [README of 1d-tokenizer]"
    assert "preset titok-l32" in rows["parameters"]
    name = "taming/imagenet-f16-16384"
    rows = _rows(tvq_command("info", name).out)
    assert "tvq convert taming" in rows["to load it"] and rows["licence of weights"] == "not stated"
    tvq.load(model).save_pretrained(catalogue.converted(name))
    rows = _rows(tvq_command("info", name).out)
    assert rows["fingerprint"] == tvq.load(model).fingerprint and "to load it" not in rows
    assert _rows(tvq_command("info", "taming/ffhq-f16").out)["codes"] == (
        "grid not known, codebook not known, width not known"
    )


def test_unknown_names_are_one_line(tvq_command, tmp_path) -> None:
    refused = tvq_command("info", "titok/l23")
    assert refused.status == 2 and "did you mean 'titok/l32'" in refused.err and refused.err.count("\n") == 1
    refused = tvq_command("info", tmp_path)
    assert refused.status == 2 and "it is not a saved tokenizer" in refused.err
    refused = tvq_command("encode", "taming/imagenet-f16-1024", tmp_path, "--out", tmp_path / "codes")
    assert refused.status == 2 and "are not on the Hub: fetch https://heibox" in refused.err
