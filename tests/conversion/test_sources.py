"""Every source against every recorded file: another's is refused, or the pair is allowed here and the reason said."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import shared
from tests.golden.test_families import cases, source
from tokenizers_vq.conversion import SOURCES, convert

SAME_MODEL = "taming's networks and quantizer, under another name: the codes are the same"
KEYS_ALIKE = "IBQ's keys are taming's; without a config only a warning can be given"
VQ = ("taming/vq-f4-ch32", "taming/vq-f8-z24-e12", "taming/vq-lightning-noattn")
WITH_CONFIG = {(name, case): SAME_MODEL for name in ("latent-diffusion", "chameleon") for case in VQ}
WITHOUT = {
    **WITH_CONFIG,
    **{("ibq", case): KEYS_ALIKE for case in VQ},
    **{(name, "ibq/dot"): KEYS_ALIKE for name in ("taming", "latent-diffusion", "chameleon")},
}
"""(source, case) of what another family's file may be converted as -> why"""


ALIKE = (
    {"open-magvit2", "wetok", "bitdance"},  # the same networks; how many codes the bits make stands in no file
    {"llamagen", "fvq"},  # the same networks; whether codes are normalised stands in no file
    {"titok", "one-d-piece"},  # the same networks and codes; that prefixes decode stands in no file
)
"""sources whose files hold the same tensors, so that the name alone tells what they are"""


def accepted(case: str, *, with_config: bool) -> set[tuple[str, str]]:
    """(source, case) of the sources beside its own, and those alike, that convert a file."""
    folder = shared("golden" if case == "none" else f"golden/{case}")
    weights, config = source(folder)
    taken = set()
    alike = next((group for group in ALIKE if folder.parent.name in group), {folder.parent.name})
    for name in sorted(set(SOURCES) - alike):
        try:
            convert(name, weights, config if with_config else None)
        except (ValueError, FileNotFoundError) as error:
            assert "\n" not in str(error)
        else:
            taken.add((name, case))
    return taken


@pytest.mark.parametrize("case", cases())
def test_a_file_of_another_source_is_refused_or_allowed_for_a_reason(case: str) -> None:
    assert accepted(case, with_config=True) == {
        pair for pair in (WITH_CONFIG if source(shared(f"golden/{case}"))[1] else WITHOUT) if pair[1] == case
    }
    assert accepted(case, with_config=False) == {pair for pair in WITHOUT if pair[1] == case}


@pytest.mark.parametrize(
    ("name", "case"),
    [*((n, c) for n in ("taming", "latent-diffusion", "chameleon", "ibq") for c in (VQ[0], "ibq/dot"))],
)
def test_where_keys_do_not_tell_the_search_it_is_said(name: str, case: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        convert(name, source(shared(f"golden/{case}"))[0])
    assert "do not tell how codes are searched" in caplog.text


@pytest.mark.parametrize("case", ["taming/gumbel-f4", "taming/vq-f4-ch32", "ibq/dot"])
def test_nothing_is_said_where_a_config_or_the_keys_tell(case: str, caplog: pytest.LogCaptureFixture) -> None:
    weights, config = source(shared(f"golden/{case}"))
    with caplog.at_level(logging.WARNING):
        convert(case.split("/")[0], weights, None if "gumbel" in case else config)
    assert "do not tell" not in caplog.text


def test_a_gumbel_file_is_not_latent_diffusions() -> None:
    with pytest.raises(ValueError, match="Gumbel tokenizer, which latent-diffusion lacks: give source 'taming'"):
        convert("latent-diffusion", source(shared("golden/taming/gumbel-f4"))[0])


@pytest.mark.parametrize("config", [{"v_patch_nums": [1, 2, 4]}, {"quant_resi": 0}])
def test_a_var_file_without_its_convolutions_needs_a_config_that_says_so(config: dict, tmp_path: Path) -> None:
    tensors = load_file(source(shared("golden/var/scales-1-2-3-4-8"))[0])
    plain = {key: value for key, value in tensors.items() if "quant_resi" not in key and "vocab_hit" not in key}
    save_file(plain, tmp_path / "var.safetensors")
    with pytest.raises(ValueError, match=r"no quantize\.quant_resi, by which VAR's files are known"):
        convert("var", tmp_path / "var.safetensors")
    tokenizer = convert("var", tmp_path / "var.safetensors", config)
    assert tokenizer.config.quantizer.phis == 0
    assert torch.equal(tokenizer.quantizer.codebook.weight, plain["quantize.embedding.weight"])


NEEDS_CONFIG = ("diffusers", "vitvqgan")
"""sources whose config is not optional, and refused for what it lacks"""


@pytest.mark.parametrize("case", [case for case in cases() if case.split("/")[0] not in NEEDS_CONFIG])
@pytest.mark.parametrize("config", [{"unheard": 1}, {"model": {"vq_model": {"unheard": 1}}}])
def test_the_config_of_another_model_is_refused_by_what_was_expected(case: str, config: dict) -> None:
    folder = shared("golden" if case == "none" else f"golden/{case}")
    with pytest.raises(ValueError, match=r"config has none of \w+, .*: it is of another model, give this"):
        convert(folder.parent.name, source(folder)[0], config)


def test_an_empty_config_is_none() -> None:
    weights = source(shared("golden/taming/vq-f4-ch32"))[0]
    assert convert("taming", weights, {}).fingerprint == convert("taming", weights).fingerprint


@pytest.mark.parametrize(
    ("case", "key", "ours"),
    [
        ("taming/vq-f8-z24-e12", "encoder.down.0.block.0.conv1.bias", "encoder.levels.0.blocks.0.conv1.bias"),
        ("taming/vq-f8-z24-e12", "decoder.up.0.block.0.conv1.bias", "decoder.levels.3.blocks.0.conv1.bias"),
        ("var/scales-1-3-6", "decoder.mid.block_1.norm1.bias", "decoder.middle.0.norm1.bias"),
        ("open-magvit2/bits6", "decoder.up.0.block.0.conv1.weight", None),
        ("maskgit/f8", "decoder.up.0.block.0.norm1.bias", "decoder.levels.3.0.norm1.bias"),
        ("rqvae/separate", "encoder.norm_out.bias", "encoder.norm.bias"),
        ("diffusers/group", "encoder.mid_block.resnets.1.conv1.bias", "encoder.middle.2.conv1.bias"),
        ("dalle/narrow", "decoder.blocks.group_1.block_1.res_path.conv_1.b", None),
        ("vqvae2/narrow", "enc_b.blocks.0.bias", None),
        ("titok/legacy-base-small", "pixel_decoder.up.0.block.0.norm1.bias", None),
    ],
)
def test_a_misfit_is_named_by_the_file_s_own_key(case: str, key: str, ours: str | None, tmp_path: Path) -> None:
    weights, config = source(shared(f"golden/{case}"))
    if weights.is_dir():
        weights, config = weights / "diffusion_pytorch_model.safetensors", weights / "config.json"
    tensors, name = load_file(weights), case.split("/")[0]
    save_file({**tensors, key: torch.zeros(*tensors[key].shape, 1)}, tmp_path / "misshapen.safetensors")
    with pytest.raises(ValueError, match=re.escape(f"{key} is (")):
        convert(name, tmp_path / "misshapen.safetensors", config)
    other = key.rpartition(".")[0]
    save_file({**tensors, f"{other}.unheard": torch.zeros(1)}, tmp_path / "surplus.safetensors")
    with pytest.raises(ValueError, match=re.escape(f"surplus {other}.unheard")):
        convert(name, tmp_path / "surplus.safetensors", config)
    if ours is not None:
        save_file({name: tensor for name, tensor in tensors.items() if name != key}, tmp_path / "missing.safetensors")
        with pytest.raises(ValueError, match=re.escape(f"missing {ours} (in the file: {key})")):
            convert(name, tmp_path / "missing.safetensors", config)


def test_twenty_misfits_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    tensors = load_file(source(shared("golden/taming/vq-f4-ch32"))[0])
    tensors |= {f"encoder.down.0.unheard{index:02}": torch.zeros(1) for index in range(23)}
    save_file(tensors, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match=r"surplus encoder\.down\.0\.unheard19; and 3 more$"):
        convert("taming", tmp_path / "more.safetensors")


@pytest.mark.parametrize("config", [[1], 3, b"model.yaml"])
def test_a_config_of_another_type_is_one_line(config: object) -> None:
    with pytest.raises(ValueError, match=r"a config is a YAML or JSON file or a mapping: got (list|int|bytes) "):
        convert("taming", source(shared("golden/taming/vq-f4-ch32"))[0], config)  # type: ignore[arg-type]
