"""Frozen text encoders of transformers, T5 or CLIP: texts to features, kept on disk beside the codes they belong to."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prior.digests import digests, places
from tokenizers_vq.config import read_json
from tokenizers_vq.writing import replacing

logger = logging.getLogger(__name__)

FOLDER = "text-features"
_BATCH, _NOTED = 64, 50_000
_LARGEST = 65504.0  # of float16


class Features(NamedTuple):
    """Features of B texts, at the right of their rows: padding stands first."""

    vectors: Tensor
    """float32 `(B, length, width)`, 0 where there is padding"""
    mask: Tensor
    """bool `(B, length)`, False where there is padding"""


class TextEncoder:
    """An encoder in eval mode, and its tokenizer. `fingerprint`: sha256 of all that decides the features."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name, self.model, self.tokenizer = name, model.eval().requires_grad_(False), tokenizer
        config = getattr(model.config, "text_config", model.config)
        self.width = int(getattr(config, "d_model", None) or config.hidden_size)
        self.longest: int | None = None
        """tokens that it can read, where its positions end"""
        if config.model_type.startswith("clip"):
            self.longest = int(config.max_position_embeddings)
        digest = hashlib.sha256(f"{config.model_type} {tokenizer.backend_tokenizer.to_str()}".encode())
        for key, tensor in sorted(model.state_dict().items()):
            rounded = tensor.detach().cpu()
            if rounded.is_floating_point():  # the same in float32 and bfloat16
                rounded = rounded.to(torch.bfloat16).view(torch.int16)
            digest.update(f"{key}{tuple(rounded.shape)}".encode() + rounded.contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, whole."""
        return [len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]] if texts else []

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], length: int, device: torch.device | str) -> Features:
        """At most `length` tokens a text, in float32, rounded to float16 as they are kept on disk."""
        self.model.to(device)
        given = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(device)
        ids, mask = given["input_ids"], given["attention_mask"].bool()
        found = self.model(input_ids=ids, attention_mask=given["attention_mask"]).last_hidden_state
        found = found.clamp(-_LARGEST, _LARGEST).half().float().masked_fill(~mask[..., None], 0)
        order = mask.long().argsort(dim=1, stable=True)  # padding first, tokens in their order
        vectors = found.gather(1, order[..., None].expand_as(found))
        return Features(vectors.clone(), mask.gather(1, order).clone())


@lru_cache(maxsize=2)
def open_encoder(name: str, revision: str | None = None) -> TextEncoder:
    """A T5 or CLIP from a folder, or `owner/name` of the Hub at a revision, in float32 on the CPU; no code of it runs.

    Raises `FileNotFoundError` where it is not there, `ValueError` for any other model or a missing package.
    """
    import tokenizers_vq._torchvision  # noqa: F401  (before transformers imports torchvision)

    try:
        import transformers
    except ImportError:
        raise ValueError("text encoders need the package transformers: pip install 'tokenizers-vq[encoders]'") from None
    options: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
    known: dict[str, Any]
    folder = Path(name)
    if not folder.is_dir() and (name.count("/") != 1 or folder.is_absolute() or name.startswith((".", "~"))):
        raise FileNotFoundError(f"no text encoder at {name}: give a folder of transformers, or owner/name of the Hub")
    try:
        config = transformers.AutoConfig.from_pretrained(name, **options)
        known = {"t5": transformers.T5EncoderModel, "clip": transformers.CLIPTextModel}
        known |= {"mt5": transformers.MT5EncoderModel, "clip_text_model": transformers.CLIPTextModel}
        if config.model_type not in known:
            raise ValueError(f"{name} is a {config.model_type}, where a text encoder is a T5 or a CLIP")
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, use_fast=True, **options)
        kind = known[config.model_type]
        model = kind.from_pretrained(name, use_safetensors=True, dtype=torch.float32, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        if isinstance(error, ValueError) and str(error).startswith(name):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FileNotFoundError(f"the text encoder {name} cannot be loaded: {reason}") from None
    return TextEncoder(name, model, tokenizer)


class Kept:
    """Features on disk: `features.npy` float16 `(tokens, width)`, and where each text's stand in it, by its digest."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Raises `ValueError` for features of another encoder, or files that do not belong together."""
        info = read_json(folder / "features.json")
        if info.get("fingerprint") != fingerprint:
            raise ValueError(
                f"{folder} holds text features of another encoder ({str(info.get('fingerprint'))[:8]}) than the "
                f"prior's ({fingerprint[:8]}): move it away, they are then made again"
            )
        try:
            self.values = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
            self.digests, self.starts = (
                np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("digests", "starts")
            )
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{folder} cannot be read ({error}): remove it, it is then made again") from None
        if len(self.starts) != len(self.digests) + 1 or self.values.ndim != 2 or self.starts[-1] != len(self.values):
            raise ValueError(f"{folder} holds files that do not belong together: remove it, it is then made again")

    def find(self, texts: Sequence[str]) -> np.ndarray:
        """int64 `(n,)`: the places of texts, -1 where one is not there."""
        return places(self.digests, texts)

    def read(self, found: np.ndarray, length: int) -> Features:
        """The features of texts by their places."""
        vectors = torch.zeros(len(found), length, self.values.shape[1])
        mask = torch.zeros(len(found), length, dtype=torch.bool)
        for row, place in enumerate(found):
            first, last = int(self.starts[place]), int(self.starts[place + 1])
            vectors[row, length - (last - first) :] = torch.from_numpy(np.array(self.values[first:last])).float()
            mask[row, length - (last - first) :] = True
        return Features(vectors, mask)


def keep(encoder: TextEncoder, texts: set[str], length: int, codes: Path, device: torch.device | str) -> Kept:
    """The features of `texts`, as they are kept in the folder `codes`, made where one of them is missing."""
    folder = codes / FOLDER / f"{encoder.fingerprint[:16]}-{length}"
    if folder.is_dir():
        kept = Kept(folder, encoder.fingerprint)
        if bool((kept.find(sorted(texts)) >= 0).all()):
            return kept
    logger.warning("%s: features of %d texts by %s, kept in %s", codes, len(texts), encoder.name, folder)
    ordered = sorted(texts)
    names = digests(ordered)
    order = names.argsort()
    if len(np.unique(names)) < len(names):
        raise ValueError(f"{codes}: two captions have one digest; leave one of them out")
    folder.parent.mkdir(exist_ok=True)
    with replacing(folder) as new:
        sizes = np.zeros(len(ordered), dtype=np.int64)
        rows = []
        for first in range(0, len(ordered), _BATCH):
            found = encoder([ordered[at] for at in order[first : first + _BATCH]], length, device)
            sizes[first : first + _BATCH] = found.mask.sum(dim=1).cpu().numpy()
            rows.append(found.vectors[found.mask].half().cpu().numpy())
            if first and first % _NOTED < _BATCH:
                logger.warning("%s: %d of %d texts", codes, first, len(ordered))
        np.save(new / "features.npy", np.concatenate(rows) if rows else np.zeros((0, encoder.width), np.float16))
        np.save(new / "digests.npy", names[order])
        np.save(new / "starts.npy", np.concatenate(([0], sizes.cumsum())))
        about = {"fingerprint": encoder.fingerprint, "encoder": encoder.name, "length": length, "texts": len(ordered)}
        (new / "features.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return Kept(folder, encoder.fingerprint)
