"""`encode` and `decode` compile into one graph, whatever the family, and give what they give in eager mode."""

from __future__ import annotations

import shutil

import pytest
import torch

import tokenizers_vq as tvq
from tests.laws.test_tokenizers import picture
from tokenizers_vq.tokenizer import Tokenizer


def shallow(preset: str) -> Tokenizer:
    """A family's small preset with as few layers as its fields allow: what repeats compiles as the first does."""
    config = tvq.create(preset).config
    parts = ((part, getattr(config, part).arguments()) for part in ("encoder", "decoder"))
    fewer = [f"{part}.{field}=1" for part, fields in parts for field in ("blocks", "layers") if field in fields]
    return tvq.create(preset, fewer).eval()


def held_to_eager(tokenizer: Tokenizer, backend: str) -> None:
    images = picture(tokenizer.config.channels, *tokenizer.config.size)
    codes = tokenizer.encode(images)
    torch.compiler.reset()
    encode = torch.compile(tokenizer.encode, fullgraph=True, backend=backend)
    decode = torch.compile(tokenizer.decode, fullgraph=True, backend=backend)
    parts, compiled = (each if isinstance(each, tuple) else (each,) for each in (codes, encode(images)))
    assert len(parts) == len(compiled) and all(map(torch.equal, parts, compiled))
    assert torch.allclose(decode(codes), tokenizer.decode(codes), atol=1e-4)


@pytest.mark.parametrize("preset", [name for name in tvq.list_models("preset") if "tiny" in name])
def test_both_verbs_compile_into_one_graph_in_every_family(preset: str) -> None:
    held_to_eager(shallow(preset), "aot_eager")


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
def test_both_verbs_compile_with_inductor() -> None:
    fields = [f"{part}.{field}" for part in ("encoder", "decoder") for field in ("width=8", "blocks=1")]
    held_to_eager(tvq.create("vqvae-tiny-64", ["image_size=16", "quantizer.num_codes=32", *fields]).eval(), "inductor")
