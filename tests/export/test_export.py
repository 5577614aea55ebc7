"""Exports: what is written gives what the tokenizer gives, at any batch and size; else it is refused or said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tokenizers_vq as tvq
from tests.laws.test_tokenizers import narrow, picture
from tokenizers_vq.cli import main
from tokenizers_vq.conversion import convert
from tokenizers_vq.export import export, graphs, programs
from tokenizers_vq.tokenizer import Tokenizer

VQGAN = [f"{part}.{field}" for part in ("encoder", "decoder") for field in ("width=8", "groups=4")]


def spread(preset: str, *overrides: str) -> Tokenizer:
    """A narrow tokenizer whose codes vary."""
    tokenizer = narrow(preset, *overrides)
    with torch.no_grad():
        features = tokenizer.encode_features(picture(tokenizer.config.channels, 32, 64, 8))
        rows = features.movedim(1, -1).flatten(0, -2)
        tokenizer.quantizer.weight.copy_(rows[: tokenizer.quantizer.num_codes])
    return tokenizer


def run_torch(folder: Path, part: str, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.export.load(folder / f"{part}.pt2").module()(x)


def run_onnx(folder: Path, part: str, x: Tensor) -> Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(folder / f"{part}.onnx", providers=["CPUExecutionProvider"])
    (given,), (wanted,) = session.get_inputs(), session.get_outputs()
    assert {given.name, wanted.name} == {"images", "codes"}
    return torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])


@pytest.mark.parametrize(
    ("to", "preset", "overrides"),
    [("torch", "vit-vqgan-tiny-64", ["encoder.layers=1", "decoder.layers=1"]), ("onnx", "vqvae-tiny-64", [])],
)
def test_both_graphs_are_the_tokenizer_at_any_batch_and_size(
    to: str, preset: str, overrides: list[str], tmp_path: Path, capfd
) -> None:
    tokenizer = spread(preset, "quantizer.num_codes=256", *overrides)
    if to == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit) as stop:
        main(["export", str(tmp_path / "model"), "--to", to, "--out", str(tmp_path / "out")])
    out, err = capfd.readouterr()
    assert not stop.value.code and out.strip() == str(tmp_path / "out")
    assert "encode: any batch, any height and width; 0 of" in err and "decode: any batch" in err
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert report["fingerprint"] == tokenizer.fingerprint
    assert tvq.CodeLayout.from_dict(report["layout"]) == tokenizer.code_layout()
    run = {"torch": run_torch, "onnx": run_onnx}[to]
    for batch, height, width in [(1, 64, 64), (5, 20, 44), (2, 64, 8)]:
        images = picture(3, height, width, batch)
        codes = run(tmp_path / "out", "encode", images)
        assert torch.equal(codes, tokenizer.encode(images)) and len(codes.unique()) > 8
        assert torch.allclose(run(tmp_path / "out", "decode", codes), tokenizer.decode(codes), atol=1e-4)
    for part in ("encode", "decode"):
        assert report["graphs"][part]["dynamic"] and len(report["graphs"][part]["compared"]["sizes"]) > 3
    if to == "torch":  # each program holds its own half alone
        for part, other in (("encode", "decoder"), ("decode", "encoder")):
            state = torch.export.load(tmp_path / "out" / f"{part}.pt2").state_dict
            assert state and not any(f".{other}." in name for name in state)


def test_a_network_of_one_size_is_exported_for_that_size_and_said(tmp_path: Path, capfd) -> None:
    tokenizer = narrow("vqvae-tiny-64", "image_size=16")

    def one(height: int, width: int) -> tuple[int, int]:
        if (height, width) != (16, 16):
            raise ValueError("16x16 alone")
        return 4, 4

    tokenizer.encoder.grid = one  # type: ignore[method-assign]
    graph = export(tokenizer, "torch", tmp_path / "out")["graphs"]["encode"]
    assert not graph["dynamic"] and "no other size" in graph["reason"]
    images = picture(3, 16, 16, batch=4)
    assert torch.equal(run_torch(tmp_path / "out", "encode", images), tokenizer.encode(images))


def test_codes_that_differ_are_refused_but_for_near_ties() -> None:
    tokenizer = narrow("vqvae-tiny-64", "image_size=16", "quantizer.distance=euclidean")
    images = graphs.examples(tokenizer)[0].images
    with torch.no_grad():  # two codes about the feature that is meddled with, all others far
        feature = tokenizer.encode_features(images)[0, :, 0, 0]
        tokenizer.quantizer.weight += 100
        tokenizer.quantizer.weight[0] = feature * 1.01
        tokenizer.quantizer.weight[1] = feature * 0.990001
    given = graphs.examples(tokenizer)

    def instead(code: int):  # type: ignore[no-untyped-def]
        def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            codes = tokenizer.encode(inputs[0]).clone()
            codes[0, 0, 0] = code
            return (codes,)

        return run

    other = 1 - int(given[0].codes[0][0, 0, 0])
    assert graphs.compare(tokenizer, "encode", given[:1], instead(other)) == {
        "images": 2,
        "sizes": [[16, 16]],
        "codes": 32,
        "differ": 1,
    }
    with pytest.raises(ValueError, match="1 of 32 codes differ"):
        graphs.compare(tokenizer, "encode", given, instead(5))
    with pytest.raises(ValueError, match="images differ by 0"):
        graphs.compare(tokenizer, "decode", given, lambda codes: (tokenizer.decode(codes[0]) + 0.1,))
    with pytest.raises(ValueError, match="the tokenizer"):
        graphs.compare(tokenizer, "decode", given, lambda codes: (tokenizer.decode(codes[0])[:, :, 1:],))


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, out = narrow("vqvae-tiny-64"), tmp_path / "sub" / "out"

    def write(tokenizer: Tokenizer, folder: Path) -> dict[str, str]:
        (folder / "encode.pt2").write_text("new")
        return {}

    def crash(tokenizer: Tokenizer, folder: Path) -> dict[str, str]:
        (folder / "encode.pt2").write_text("half")
        raise ValueError("no")

    monkeypatch.setattr(programs, "write", crash)
    with pytest.raises(ValueError, match="no"):
        export(tokenizer, "torch", out)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(programs, "write", write)
    out.mkdir(parents=True)
    (out / "decode.pt2").write_text("old")
    export(tokenizer, "torch", out)
    assert sorted(path.name for path in out.iterdir()) == ["encode.pt2", "export.json"]
    (out / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"not an earlier export to torch \(mine\.txt\)"):
        export(tokenizer, "torch", out)
    assert (out / "encode.pt2").read_text() == "new" and list(out.parent.iterdir()) == [out]
    with pytest.raises(ValueError, match="did you mean 'onnx'"):
        export(tokenizer, "onxx", out)


@pytest.mark.parametrize(
    "overrides",
    [
        ["encoder.attention=[1]", "decoder.attention=[0, 2]", "channels=1"],
        ["encoder.middle_attention=false", "decoder.middle_attention=false", "quantizer.distance=cosine"],
        ["encoder.latent_width=6", "decoder.latent_width=6", "encoder.blocks=2", "decoder.blocks=3"],
        [
            *("decoder.norm=spatial", "decoder.width=32", "encoder.width=32", "decoder.groups=32"),
            *("decoder.attention=[1]", "encoder.latent_width=null", "decoder.latent_width=null"),
        ],
        ["encoder.multipliers=[1, 2]", "decoder.multipliers=[1, 2]", "quantizer.codebook=ema", "image_size=[24, 16]"],
    ],
)
def test_diffusers_reads_the_folder_as_the_same_model(overrides: list[str], tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    base = ["image_size=16", "encoder.blocks=1", "decoder.blocks=2", "quantizer.num_codes=128"]
    tokenizer = spread("vqgan-tiny-64", *base, *overrides)
    compared = export(tokenizer, "diffusers", tmp_path / "out")["compared"]
    assert compared["encode"]["differ"] == 0 and compared["decode"]["error"] < 1e-4
    images = picture(tokenizer.config.channels, 16, 24)
    back = convert("diffusers", tmp_path / "out")
    assert torch.equal(back.encode(images), tokenizer.encode(images))
    decoded = back.decode(tokenizer.encode(images))
    assert torch.allclose(decoded.clamp(-1, 1), tokenizer.decode(tokenizer.encode(images)), atol=1e-5)
    model = diffusers.VQModel.from_pretrained(tmp_path / "out", local_files_only=True)
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert report["fingerprint"] == tokenizer.fingerprint and any("clamp" in line for line in report["differs"])
    with torch.no_grad():
        raw = model.decode(model.encode(images).latents).sample  # as `differs` says: clamped, it is the tokenizer's
    assert torch.allclose(raw.clamp(-1, 1), tokenizer.decode(tokenizer.encode(images)), atol=1e-4)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == sum(tensor.numel() for name, tensor in tokenizer.state_dict().items() if "er.weight" in name) + sum(
        tensor.numel() for name, tensor in tokenizer.state_dict().items() if not name.startswith("quantizer.")
    )


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("vit-vqgan-tiny-64", [], "kind 'vqgan', this tokenizer 'vit' and 'vit'"),
        ("vqgan-tiny-64", ["decoder.blocks=4"], "one block a level more"),
        ("vqgan-tiny-64", ["decoder.middle_attention=false"], "same middle_attention"),
        ("vqgan-tiny-64", ["pixels={low: 0.0, high: 1.0, clamp: true}"], r"images in \[-1, 1\]"),
        (
            "vqgan-tiny-64",
            ["pixels={low: 0.1, high: 0.9, clamp: true}", "decoder.output=logit_laplace"],
            r"images in \[-1, 1\]|output=logit_laplace",
        ),
    ],
)
def test_what_diffusers_cannot_hold_is_said(preset: str, overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"VQModel .*{message}.*: export to torch or onnx"):
        export(narrow(preset, *overrides), "diffusers", tmp_path / "out")
    assert not list(tmp_path.iterdir())
