"""DALL-E's and rosinality's files: whole-module pickles, prefixes, widths from the keys, strict keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenizers_vq.conversion import convert
from tokenizers_vq.hierarchical import HierarchicalTokenizer


def dalle_tensors(
    width: int = 8, init: int = 6, codes: int = 20, blocks: int = 1, channels: int = 3
) -> dict[str, Tensor]:
    """Random tensors by the keys of openai/DALL-E, of three groups."""
    tensors: dict[str, Tensor] = {}

    def conv(key: str, before: int, after: int, kernel: int) -> None:
        tensors[f"{key}.w"], tensors[f"{key}.b"] = torch.randn(after, before, kernel, kernel), torch.randn(after)

    def groups(part: str, before: int, widths: list[int], kernels: tuple[int, ...]) -> None:
        for group, after in enumerate(widths, 1):
            for block in range(1, blocks + 1):
                key = f"{part}.blocks.group_{group}.block_{block}"
                if before != after:
                    conv(f"{key}.id_path", before, after, 1)
                steps = [before, *[after // 4] * 3, after]
                for i, kernel in enumerate(kernels):
                    conv(f"{key}.res_path.conv_{i + 1}", steps[i], steps[i + 1], kernel)
                before = after

    conv("encoder.blocks.input", channels, width, 7)
    groups("encoder", width, [width, 2 * width, 4 * width], (3, 3, 3, 1))
    conv("encoder.blocks.output.conv", 4 * width, codes, 1)
    conv("decoder.blocks.input", codes, init, 1)
    groups("decoder", init, [4 * width, 2 * width, width], (1, 3, 3, 3))
    conv("decoder.blocks.output.conv", width, 2 * channels, 1)
    return tensors


def as_module(tensors: dict[str, Tensor]) -> nn.Module:
    """A module with these parameters, dots in their names meaning modules inside."""
    root = nn.Module()
    for key, tensor in tensors.items():
        *parents, name = key.split(".")
        part = root
        for parent in parents:
            if not hasattr(part, parent):
                part.add_module(parent, nn.Module())
            part = getattr(part, parent)
        part.register_parameter(name, nn.Parameter(tensor))
    return root


def test_dalle_is_read_from_two_pickled_modules_as_from_one_file(tmp_path: Path) -> None:
    tensors = dalle_tensors(blocks=2)
    save_file(tensors, tmp_path / "both.safetensors")
    for part in ("encoder", "decoder"):
        own = {key.removeprefix(f"{part}."): value for key, value in tensors.items() if key.startswith(part)}
        torch.save(as_module(own), tmp_path / f"{part}.pkl")
    one, two = convert("dalle", tmp_path / "both.safetensors"), convert("dalle", tmp_path)
    assert one.fingerprint == two.fingerprint and one.config == two.config
    assert one.config.image_size == 256 and one.config.pixels.low == 0.1
    assert one.config.encoder.multipliers == one.config.decoder.multipliers == (1, 2, 4)
    assert one.config.encoder.blocks == 2 and one.config.quantizer.dim == 6
    images = torch.rand(1, 3, 8, 12) * 2 - 1
    assert torch.equal(one.decode(one.encode(images)), two.decode(two.encode(images)))
    assert sum(parameter.numel() for parameter in one.parameters()) == sum(map(Tensor.numel, tensors.values()))
    (tmp_path / "decoder.pkl").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no decoder\.pkl"):
        convert("dalle", tmp_path)


def test_dalle_in_the_other_forms_people_save(tmp_path: Path) -> None:
    tensors = dalle_tensors()
    own = {
        part: {key.removeprefix(f"{part}."): value for key, value in tensors.items() if key.startswith(part)}
        for part in ("encoder", "decoder")
    }
    save_file(tensors, tmp_path / "plain.safetensors")
    torch.save(own, tmp_path / "nested.pt")
    torch.save({part: as_module(inner) for part, inner in own.items()}, tmp_path / "modules.pt")
    short = {re.sub(r"^(en|de)coder", r"\1c", key): value for key, value in tensors.items()}
    torch.save(short, tmp_path / "dalle_pytorch.pt")
    (tmp_path / "folder").mkdir()
    for part, inner in own.items():
        torch.save(inner, tmp_path / "folder" / f"{part}.pkl")
    names = ("plain.safetensors", "nested.pt", "modules.pt", "dalle_pytorch.pt", "folder")
    assert len({convert("dalle", tmp_path / name).fingerprint for name in names}) == 1


def test_dalle_of_other_widths_and_channels(tmp_path: Path) -> None:
    save_file(dalle_tensors(width=4, init=3, codes=7, channels=1), tmp_path / "x.safetensors")
    tokenizer = convert("dalle", tmp_path / "x.safetensors", {"image_size": 64})
    assert tokenizer.config.image_size == 64 and tokenizer.config.channels == 1
    assert tokenizer.code_layout(16, 8).grids == ((4, 2),) and tokenizer.code_layout().sizes == (7,)


def vqvae2_tensors(width: int = 8, inner: int = 4, blocks: int = 1, dim: int = 5, codes: int = 11) -> dict[str, Tensor]:
    """Random tensors by the keys of rosinality/vq-vae-2-pytorch."""
    tensors: dict[str, Tensor] = {}

    def conv(key: str, *shape: int, out: int | None = None) -> None:
        tensors[f"{key}.weight"], tensors[f"{key}.bias"] = torch.randn(*shape), torch.randn(out or shape[0])

    def residual(part: str, first: int) -> int:
        for i in range(blocks):
            conv(f"{part}.blocks.{first + i}.conv.1", inner, width, 3, 3)
            conv(f"{part}.blocks.{first + i}.conv.3", width, inner, 1, 1)
        return first + blocks + 1  # a ReLU follows

    half = width // 2
    for place, shape in ((0, (half, 3, 4, 4)), (2, (width, half, 4, 4)), (4, (width, width, 3, 3))):
        conv(f"enc_b.blocks.{place}", *shape)
    residual("enc_b", 5)
    for place, shape in ((0, (half, width, 4, 4)), (2, (width, half, 3, 3))):
        conv(f"enc_t.blocks.{place}", *shape)
    residual("enc_t", 3)
    conv("dec_t.blocks.0", width, dim, 3, 3)
    conv(f"dec_t.blocks.{residual('dec_t', 1)}", width, dim, 4, 4, out=dim)
    conv("dec.blocks.0", width, 2 * dim, 3, 3)
    place = residual("dec", 1)
    conv(f"dec.blocks.{place}", width, half, 4, 4, out=half)
    conv(f"dec.blocks.{place + 2}", half, 3, 4, 4, out=3)
    conv("quantize_conv_t", dim, width, 1, 1)
    conv("quantize_conv_b", dim, dim + width, 1, 1)
    conv("upsample_t", dim, dim, 4, 4)
    for level in "tb":
        tensors[f"quantize_{level}.embed"] = torch.randn(dim, codes)
        tensors[f"quantize_{level}.embed_avg"] = torch.randn(dim, codes)
        tensors[f"quantize_{level}.cluster_size"] = torch.rand(codes)
    return tensors


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_vqvae2_is_read_whatever_its_depth_and_prefix(blocks: int, tmp_path: Path) -> None:
    tensors = vqvae2_tensors(blocks=blocks)
    torch.save(tensors, tmp_path / "plain.pt")
    torch.save({f"module.{key}": value for key, value in tensors.items()}, tmp_path / "parallel.pt")
    plain, parallel = (convert("vqvae2", tmp_path / f"{name}.pt") for name in ("plain", "parallel"))
    assert isinstance(plain, HierarchicalTokenizer) and plain.fingerprint == parallel.fingerprint
    assert plain.config.encoder.blocks == blocks and plain.code_layout(16, 24).grids == ((2, 3), (4, 6))
    assert torch.equal(plain.quantizers[0].weight, tensors["quantize_t.embed"].T)
    assert torch.equal(plain.quantizers[1].cluster_sum, tensors["quantize_b.embed_avg"].T)
    learned = sum(value.numel() for key, value in tensors.items() if not key.startswith(("quantize_t", "quantize_b")))
    assert sum(parameter.numel() for parameter in plain.parameters()) == learned


@pytest.mark.parametrize(
    ("source", "make", "key", "missing"),
    [
        (
            "dalle",
            dalle_tensors,
            "encoder.blocks.group_2.block_1.id_path.w",
            r"missing encoder\.levels\.1\.0\.shor",
        ),
        ("dalle", dalle_tensors, "decoder.blocks.input.w", "it is not a discrete VAE of DALL-E"),
        ("vqvae2", vqvae2_tensors, "upsample_t.bias", r"missing decoder\.join\.upsample\.0\.0\.bias"),
        ("vqvae2", vqvae2_tensors, "quantize_t.embed", r"no tensor for quantizer\.0\.weight"),
    ],
)
def test_missing_and_surplus_keys_are_named(source: str, make, key: str, missing: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tensors, path = make(), tmp_path / "x.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, path)
    with pytest.raises(ValueError, match=missing):
        convert(source, path)
    save_file({**tensors, "more.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"surplus more\.weight"):
        convert(source, path)


def test_a_codebook_of_another_layout_is_refused(tmp_path: Path) -> None:
    save_file({**vqvae2_tensors(), "quantize_t.embed": torch.zeros(5)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"quantize_t\.embed is \(5,\), not \(D, K\)"):
        convert("vqvae2", tmp_path / "x.safetensors")
