"""Small random text encoders, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import torch

import tokenizers_vq._torchvision  # noqa: F401  (before transformers)

WORDS = ["a", "cat", "dog", "fox", "photo", "of", "two", "red", "foxes", "at", "night", "one"]


def save_encoder(folder: Path, kind: str, seed: int = 0, width: int = 12) -> Path:
    """A T5 or a CLIP whose tokens are words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = {"t5": ["<pad>", "</s>", "<unk>"], "clip": ["<pad>", "<s>", "</s>", "<unk>"]}[kind]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    begin = "<s> " if kind == "clip" else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin}$A </s>", special_tokens=[(name, vocabulary[name]) for name in special]
    )
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(seed)
    if kind == "t5":
        config = transformers.T5Config(
            vocab_size=len(vocabulary), d_model=width, d_kv=6, d_ff=24, num_layers=2, num_heads=2
        )
        transformers.T5EncoderModel(config).save_pretrained(folder)
    else:
        config = transformers.CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=width,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=10,
            eos_token_id=vocabulary["</s>"],
        )
        transformers.CLIPTextModel(config).save_pretrained(folder)
    return folder
