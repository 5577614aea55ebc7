"""A published prior and its tokenizer at sizes that nobody published, as their publishers write them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

CODES, CLASSES = 16, 3
GENERATOR = {
    "model_type": "ViT",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "class_label_dropout": 0.1,
    "image_seq_len": "${model.vq_model.num_latent_tokens}",
    "condition_num_classes": CLASSES,
}


def row_tokenizer(tokens: int = 4) -> Tokenizer:
    """A TiTok of images of 16 x 16 pixels and a row of codes."""
    torch.manual_seed(0)
    shared = {"kind": "titok", "tokens": tokens, "patch": 8, "width": 64, "layers": 1, "heads": 1}
    config = TokenizerConfig(
        image_size=16,
        channels=3,
        pixels=PixelRange(low=0.0, high=1.0),
        encoder=shared,  # type: ignore[arg-type]
        quantizer={"kind": "vector", "num_codes": CODES, "dim": 4},  # type: ignore[arg-type]
        decoder=shared,  # type: ignore[arg-type]
    )
    return config.build().eval()


def bert(tokens: int = 4) -> tuple[nn.Module, dict[str, Tensor]]:
    """transformers' BERT with a head as `ImageBert` has it, and its tensors by its keys."""
    torch.manual_seed(1)
    sizes = {name: GENERATOR[name] for name in list(GENERATOR)[1:5]}
    model = BertModel(
        BertConfig(vocab_size=CODES + CLASSES + 2, max_position_embeddings=tokens + 1, **sizes), add_pooling_layer=False
    )
    model.lm_head = nn.Linear(GENERATOR["hidden_size"], CODES)
    return model.eval(), {f"model.{key}": tensor.clone() for key, tensor in model.state_dict().items()}


def bert_config(tokens: int = 4) -> dict[str, object]:
    """Its config, as it is published."""
    return {"model": {"vq_model": {"codebook_size": CODES, "num_latent_tokens": tokens}, "generator": dict(GENERATOR)}}


def bert_folder(folder: Path) -> Path:
    """A folder of it on the Hub."""
    folder.mkdir(parents=True)
    save_file(bert()[1], folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(bert_config()))
    return folder
