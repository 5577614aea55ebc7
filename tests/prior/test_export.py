"""A GPT prior as transformers' Llama: equal logits and greedy codes by the real class, or refused with the reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import prior
from prior.cli import main
from prior.conditions import ClassConfig, NoneConfig, TextConfig
from prior.export import export
from prior.model import Prior, PriorConfig
from prior.networks.gpt import GptConfig
from prior.networks.maskgit import MaskGitConfig
from prior.sequences import LayoutConfig

ROW = GptConfig(layers=2, dim=48, heads=3, multiple=16, positions="rope_1d", base=500.0, eps=1e-4)
GRID = LayoutConfig(grids=((3, 4),), sizes=(11,))


def build(network: Any = ROW, condition: Any = None, layout: LayoutConfig = GRID) -> Prior:
    """A prior whose weights are large enough for logits to differ."""
    torch.manual_seed(0)
    told = condition or ClassConfig(num_classes=3)
    made = Prior(PriorConfig(network=network, condition=told, layout=layout, fingerprint="ab" * 32)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize(
    ("network", "condition", "prompts"),
    [
        (ROW, ClassConfig(num_classes=3), [[11], [12], [13], [14]]),
        (ROW.replace(begin=True), ClassConfig(num_classes=3, dropout=0), [[15, 11], [15, 12], [15, 13]]),
        (ROW.replace(rotary_scale=(0.5, 0.25)), NoneConfig(), [[11]]),
        (ROW.replace(hidden=40), NoneConfig(), [[11]]),
    ],
)
def test_llama_gives_the_logits_and_the_greedy_codes(network, condition, prompts, tmp_path: Path) -> None:
    made = build(network, condition)
    report = export(made, "llama", tmp_path / "llama")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "llama").eval()
    tokens = torch.randint(11, (len(prompts), 12))
    told: Any = None if isinstance(condition, NoneConfig) else [0, 1, 2, None][: len(prompts)]
    prompt = torch.tensor(prompts)
    with torch.no_grad():
        theirs = model(input_ids=torch.cat((prompt, tokens), dim=1)).logits[:, prompt.shape[1] - 1 : -1]
        ours = made.logits(tokens, told)
    assert (theirs[..., :11] - ours).abs().max() < 1e-4 and ours.std() > 0.1
    assert (theirs[..., 11:] == 0).all()
    drawn = model.generate(prompt, do_sample=False, temperature=None, top_p=None)[:, prompt.shape[1] :]
    assert torch.equal(drawn, made.sample(len(prompts), told, temperature=0))
    assert report["null"] == (14 if made.condition.guidable else None) and report["codes"] == [0, 11]
    assert json.loads((tmp_path / "llama" / "export.json").read_text()) == report
    assert report["fingerprint"] == "ab" * 32 and report["compared"]["error"] < 1e-4


@pytest.mark.parametrize(
    ("network", "condition", "said"),
    [
        (ROW.replace(positions="rope"), None, "network.positions=rope: train one with positions=rope_1d to export it"),
        (ROW.replace(positions="learned"), None, "network.positions=learned"),
        (ROW.replace(positions="llamagen"), None, "network.positions=llamagen"),
        (ROW.replace(norm="layer"), None, "has RMSNorm, this prior has network.norm=layer"),
        (ROW.replace(mlp="gelu"), None, "has a SwiGLU, this prior has network.mlp=gelu"),
        (ROW.replace(bias=True), None, "has no biases in its blocks, this prior has network.bias=true"),
        (ROW.replace(qk_norm=True), None, "has no norms of queries and keys"),
        (ROW.replace(order="random"), None, "knows no target of the next place"),
        (ROW.replace(entry=("cross",)), None, "network.entry=[cross]: train one with entry=[prefix]"),
        (MaskGitConfig(layers=1, dim=32, heads=2), None, "this prior's network of kind 'maskgit'"),
        (ROW, TextConfig(), "is prompted with tokens, this prior is told a prompt as vectors of another network"),
    ],
)  # fmt: skip
def test_what_llama_cannot_hold_is_refused_with_the_reason(network, condition, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"transformers' Llama .*{re.escape(said)}") as error:
        export(build(network, condition), "llama", tmp_path / "llama")
    assert "\n" not in str(error.value) and not (tmp_path / "llama").exists()


def test_streams_formats_and_folders_are_refused(tmp_path: Path) -> None:
    levels = build(layout=LayoutConfig(grids=((2, 2),), levels=2, sizes=(5, 4)))
    with pytest.raises(ValueError, match="one table of tokens for all places, this prior 2 streams of codes"):
        export(levels, "llama", tmp_path / "llama")
    with pytest.raises(ValueError, match="no format 'lama' of priors; did you mean 'llama'"):
        export(build(), "lama", tmp_path / "llama")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(ValueError, match="is not an earlier export: give --out another folder"):
        export(build(), "llama", tmp_path / "photos")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build().save_pretrained(tmp_path / "prior")
    for status, model in ((0, tmp_path / "prior"), (2, "gpt-tiny-imagenet-64")):
        with pytest.raises(SystemExit) as stop:
            main(["export", str(model), "--out", str(tmp_path / "llama")])
        assert stop.value.code == status or (status == 0 and not stop.value.code)
        said = capsys.readouterr()
    assert "train one with positions=rope_1d to export it" in said.err and said.err.count("\n") == 1
    assert prior.load(tmp_path / "prior").config.network == ROW and (tmp_path / "llama" / "export.json").is_file()
