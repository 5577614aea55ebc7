"""Published priors at sizes that nobody published: equal to the reference, or refused in one line."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import prior
from prior.cli import main
from prior.conversion import SOURCES
from prior.conversion.guess import guess
from prior.conversion.keys import depth, stack
from tests.conftest import shared
from tests.prior.published import CLASSES, CODES, GENERATOR, bert, bert_config, bert_folder, row_tokenizer
from tests.stand_ins import make_tokenizer
from tokenizers_vq.conversion import convert as convert_tokenizer


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A plain state dict, as a user has it."""
    torch.save(bert()[1], tmp_path / "generator.bin")
    return tmp_path / "generator.bin"


def test_a_converted_bert_gives_the_logits_of_transformers(file: Path) -> None:
    made = prior.convert("maskgit-transformer", file, bert_config())
    model, _ = bert()
    tokens = torch.tensor([[3, -1, 7, -1], [-1, -1, -1, -1], [0, 15, 2, 9]])
    labels = torch.tensor([2, 0, 1])
    for condition, rows in ((labels, labels), (None, torch.full((3,), CLASSES))):
        given = torch.cat((CODES + 1 + rows[:, None], tokens.masked_fill(tokens < 0, CODES)), dim=1)
        with torch.no_grad():
            wanted = model.lm_head(model(input_ids=given).last_hidden_state)[:, 1:]
            assert (made.logits(tokens, condition) - wanted).abs().max() < 1e-5
    assert made.condition.guidable and made.config.fingerprint is None


def test_classes_are_given_names(file: Path) -> None:
    made = prior.convert("maskgit-transformer", file, bert_config(), label_names=["cat", "dog", "fox"])
    tokens = torch.full((1, 4), -1)
    assert torch.equal(made.logits(tokens, "dog"), made.logits(tokens, 1))
    with pytest.raises(ValueError, match=r"generator\.bin: .*label_names: 2 names for 3 classes"):
        prior.convert("maskgit-transformer", file, bert_config(), label_names=["cat", "dog"])


def test_wrappers_and_formats_are_opened(file: Path, tmp_path: Path) -> None:
    plain = prior.convert("maskgit-transformer", file, bert_config()).state_dict()
    tensors = bert()[1]
    wrapped = {f"module.{key}": tensor for key, tensor in tensors.items()}
    old = {**tensors, "model.embeddings.position_ids": torch.arange(5)[None]}
    for index, content in enumerate(({"state_dict": wrapped, "epoch": 3}, {"ema": tensors}, old)):
        torch.save(content, tmp_path / f"{index}.pt")
        made = prior.convert("maskgit-transformer", tmp_path / f"{index}.pt", bert_config())
        assert all(torch.equal(tensor, plain[name]) for name, tensor in made.state_dict().items())
    folder = prior.convert("maskgit-transformer", bert_folder(tmp_path / "folder"))
    assert torch.equal(folder.network.head.weight, plain["network.head.weight"])


def test_heads_that_nothing_tells_are_those_of_the_published_sizes_alone(file: Path) -> None:
    with pytest.raises(ValueError, match=r"num_attention_heads.*stands in the config alone"):
        prior.convert("maskgit-transformer", file)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_attention_heads", 5, "heads: 5 heads do not divide the width 32"),
        ("num_attention_heads", "four", "num_attention_heads must be a whole number, got 'four'"),
        ("hidden_size", 64, "the config says hidden_size 64, its tensors 32"),
        ("num_hidden_layers", 3, "the config says num_hidden_layers 3, its tensors 2"),
        ("condition_num_classes", 10, "the config says condition_num_classes 10, its tensors 3"),
        ("image_seq_len", 9, "the config says image_seq_len 9, its tensors 4"),
        ("model_type", "UViT", "the config says model_type UViT, its tensors ViT"),
        ("class_label_dropout", "x", "class_label_dropout must be a number, got 'x'"),
    ],
)
def test_a_config_that_contradicts_the_file_is_refused(file: Path, name: str, value: object, said: str) -> None:
    config = bert_config()
    config["model"] = {**config["model"], "generator": {**GENERATOR, name: value}}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        prior.convert("maskgit-transformer", file, config)
    assert "\n" not in str(error.value) and str(file) in str(error.value)


def test_the_config_of_another_model_is_refused(file: Path) -> None:
    for config in ({"unheard": 1}, {"model": {"generator": {"unheard": 1}}}):
        with pytest.raises(ValueError, match=r"its config has none of hidden_size, .* it is of another model"):
            prior.convert("maskgit-transformer", file, config)


def test_keys_are_strict_both_ways_and_named_as_the_file_has_them(tmp_path: Path) -> None:
    tensors, path = bert()[1], tmp_path / "model.safetensors"
    layer = "model.encoder.layer.1"
    for change, said in (
        ({f"{layer}.attention.self.key.bias": None}, f"missing {layer}.attention.self.key.bias"),
        ({f"{layer}.output.dense.bias": None}, f"(in the file: {layer}.output.dense.bias)"),
        ({f"{layer}.output.dense.unheard": torch.zeros(1)}, f"surplus {layer}.output.dense.unheard"),
        ({f"{layer}.output.dense.bias": torch.zeros(7)}, f"{layer}.output.dense.bias is (7,), wanted (32,)"),
        ({"model.embeddings.position_embeddings.weight": None}, "has no model.embeddings.position_embeddings.weight"),
        ({"model.lm_head.weight": torch.zeros(40, 32)}, "hold no 40 codes, a mask and classes"),
        ({f"{layer}.attention.self.key.weight": torch.zeros(32, 5)}, "do not fit together"),
    ):
        changed = {key: tensor for key, tensor in {**tensors, **change}.items() if tensor is not None}
        save_file(changed, path)
        with pytest.raises(ValueError, match=re.escape(said)) as error:
            prior.convert("maskgit-transformer", path, bert_config())
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_file_of_something_else_is_named(file: Path, tmp_path: Path) -> None:
    assert guess(file) == "maskgit-transformer"
    tensors = make_tokenizer().state_dict()
    torch.save(tensors, tmp_path / "ours.pt")
    with pytest.raises(ValueError, match=r"ours\.pt has no .*: it is of another layout"):
        prior.convert("maskgit-transformer", tmp_path / "ours.pt")
    vqgan = {"decoder.conv_blocks.0.res.0.conv1.weight": torch.zeros(1), "encoder.conv_blocks.0.x": torch.zeros(1)}
    torch.save({"model": vqgan}, tmp_path / "vq.pt")
    with pytest.raises(ValueError, match="its keys look like those of a tokenizer: `tvq convert llamagen`"):
        prior.convert("maskgit-transformer", tmp_path / "vq.pt")
    with pytest.raises(
        ValueError, match="no source of priors 'maskgit-transfomer'; did you mean 'maskgit-transformer'"
    ):
        prior.convert("maskgit-transfomer", file)
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*nothing\.bin: give the checkpoint"):
        prior.convert("maskgit-transformer", tmp_path / "nothing.bin")
    with pytest.raises(ValueError, match=r"is a file, expected a prior's folder; .* `tvq-prior convert`"):
        prior.load(file)


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_every_recorded_prior_is_known_and_refused_as_another(source: str) -> None:
    for folder in sorted(shared(f"golden/{source}").iterdir()):
        path = next(
            (folder / name for name in ("weights.safetensors", "model.ckpt", "model.pt") if (folder / name).exists()),
            None,
        )
        if path is None:
            continue
        assert guess(path) == source
        for other in sorted(set(SOURCES) - {source}):
            with pytest.raises(ValueError, match=f"its keys look like those of source '{source}'") as error:
                prior.convert(other, path)
            assert "\n" not in str(error.value)


class Evil:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('it ran')",))


def test_damaged_and_pickled_files_are_one_line_and_nothing_runs(file: Path, tmp_path: Path, capsys) -> None:
    whole = file.read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "page.bin").write_bytes(b"<html>not found</html>")
    (tmp_path / "pointer.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "folder").mkdir()
    torch.save(Evil(), tmp_path / "evil.bin")
    torch.save(nn.Linear(2, 2), tmp_path / "module.bin")
    torch.save({"step": 3}, tmp_path / "none.bin")
    for name, said in (
        ("cut.bin", "truncated or not a file of torch.save"),
        ("empty.bin", "truncated or not a file of torch.save"),
        ("page.bin", "is a web page, not a checkpoint"),
        ("pointer.bin", "is a pointer of Git LFS"),
        ("cut.safetensors", "truncated or not a safetensors file"),
        ("evil.bin", "nothing of it was run"),
        ("module.bin", "it is of another layout"),
        ("none.bin", "holds no tensors by name"),
        ("folder", "no .safetensors or .bin: give the file of weights"),
    ):
        assert call("convert", "maskgit-transformer", tmp_path / name, "--out", tmp_path / "out") == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and said in lines[0], lines
    assert not (tmp_path / "out").exists()


def test_the_command_writes_a_folder_that_draws(file: Path, tmp_path: Path, capsys) -> None:
    row_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "config.yaml").write_text(json.dumps(bert_config()))
    out = tmp_path / "prior"
    given = ("convert", "maskgit-transformer", file, "--config", tmp_path / "config.yaml", "--out", out)
    assert call(*given) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(out) and "convert again with --tokenizer" in said.err
    assert "maskgit, " in said.err and "4 codes an image (4) of 16" in said.err
    assert call("sample", out, "--out", tmp_path / "a.png") == 2
    assert "convert it again with --tokenizer" in " ".join(capsys.readouterr().err.split())
    assert call(*given, "--tokenizer", tmp_path / "tokenizer") == 0
    assert "--tokenizer" not in capsys.readouterr().err
    assert call("sample", out, "--count", 2, "--out", tmp_path / "a.png", "--device", "cpu") == 0
    make_tokenizer().save_pretrained(tmp_path / "other")
    capsys.readouterr()
    assert call(*given, "--tokenizer", tmp_path / "other") == 2
    assert "the prior's codes are 4 of 16, those of the tokenizer" in capsys.readouterr().err
    assert (out / "model.safetensors").exists()
    assert call("convert", "maskgit-transformer", file, "--out", tmp_path) == 2
    assert "holds something else than an earlier conversion" in capsys.readouterr().err


def test_a_prior_s_file_is_no_tokenizer(file: Path) -> None:
    for source in ("taming", "llamagen", "titok"):
        with pytest.raises(ValueError) as error:
            convert_tokenizer(source, file)
        assert "\n" not in str(error.value)


def test_tensors_are_stacked_in_order_and_under_the_file_s_names(caplog: pytest.LogCaptureFixture) -> None:
    parts = {f"a.{name}.weight": torch.full((1, 2), index) for index, name in enumerate(("query", "key", "value"))}
    with caplog.at_level(logging.WARNING):
        found = stack({**dict(reversed(parts.items())), "b": torch.zeros(1)}, ("query", "key", "value"), "qkv")
    assert found["a.qkv.weight"].tolist() == [[0, 0], [1, 1], [2, 2]] and found.original["b"] == "b"
    assert depth({"in.3.x": torch.zeros(1), "in.x": torch.zeros(1)}, r"in\.") == 4 and depth({}, "a") == 0
