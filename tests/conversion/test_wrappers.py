"""What training frameworks put around tensors is taken off, alike in every format; what is unknown is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conversion.test_taming import tensors_without_middle_attention
from tokenizers_vq.conversion import convert
from tokenizers_vq.conversion.checkpoint import read_tensors

Tensors = dict[str, Tensor]


def before(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {f"{prefix}{key}": tensor for key, tensor in tensors.items()}


def inside(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace("encoder.", f"encoder.{name}.", 1): tensor for key, tensor in tensors.items()}


KEYS: dict[str, Callable[[Tensors], Tensors]] = {
    "DDP": before("module."),
    "torch.compile": before("_orig_mod."),
    "both": before("module._orig_mod."),
    "DeepSpeed in Lightning": before("_forward_module."),
    "FSDP": before("_fsdp_wrapped_module."),
    "a compiled part": inside("_orig_mod"),
    "a part under DDP": inside("module"),
    "a part with checkpointing": inside("_checkpoint_wrapped_module"),
    "torch's average": lambda tensors: {"n_averaged": torch.tensor(3), **before("module.")(tensors)},
    "ema-pytorch": lambda tensors: {
        "initted": torch.tensor(True),
        "step": torch.tensor(3),
        **before("ema_model.")(tensors),
        **{f"online_model.{key}": tensor + 1 for key, tensor in tensors.items()},
    },
}
CONTENTS: dict[str, Callable[[Tensors], Any]] = {
    "Lightning": lambda tensors: {"state_dict": tensors, "epoch": 3, "optimizer_states": []},
    "DeepSpeed": lambda tensors: {"module": tensors, "ds_version": "0.14", "optimizer": None},
    "a trainer": lambda tensors: {"model_state_dict": before("module.")(tensors), "step": 3},
    "nested": lambda tensors: {"model": {"state_dict": tensors}},
    "an average alone": lambda tensors: {"ema": tensors},
}


def same(found: Tensors, tensors: Tensors) -> bool:
    return set(found) == set(tensors) and all(torch.equal(found[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("ending", ["pt", "legacy.ckpt", "safetensors"])
@pytest.mark.parametrize("wrapper", KEYS)
def test_names_in_keys_are_taken_off(wrapper: str, ending: str, tmp_path: Path) -> None:
    tensors = tensors_without_middle_attention()
    wrapped, path = KEYS[wrapper](tensors), tmp_path / f"a.{ending}"
    if ending == "safetensors":
        save_file(wrapped, path)
    else:
        torch.save({"state_dict": wrapped}, path, _use_new_zipfile_serialization=ending == "pt")
    assert same(read_tensors(path, "state_dict"), tensors)


@pytest.mark.parametrize("wrapper", CONTENTS)
def test_checkpoints_of_frameworks_are_opened(wrapper: str, tmp_path: Path) -> None:
    tensors = tensors_without_middle_attention()
    torch.save(CONTENTS[wrapper](tensors), tmp_path / "a.pt")
    assert same(read_tensors(tmp_path / "a.pt"), tensors)
    assert convert("taming", tmp_path / "a.pt").config.quantizer.num_codes == 24


@pytest.mark.parametrize("prefix", ["model.", "vae.", "net.first."])
def test_an_unknown_prefix_is_named(prefix: str, tmp_path: Path) -> None:
    tensors = before(prefix)(tensors_without_middle_attention())
    torch.save({"state_dict": tensors}, tmp_path / "a.pt")
    save_file(tensors, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        with pytest.raises(ValueError, match=rf"its keys begin with '{prefix}', which source 'taming' does not know"):
            convert("taming", tmp_path / name)


def test_keys_that_differ_by_a_wrapper_alone_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "module.a": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"has a with and without the names that wrappers add, as module\.a"):
        read_tensors(tmp_path / "a.pt")
