"""Feed the codes to any model of token sequences: here a Hugging Face GPT-2, trained by transformers.Trainer.

python examples/codes_for_transformers.py CODES OUT [STEPS] [WIDTH]

CODES: a folder that `tvq encode` wrote. An image is a begin token and its codes in raster order; GPT-2 learns to go on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import tokenizers_vq as tvq
from tokenizers_vq.data.shards import read_codes


def main(codes: str, out: str, steps: str = "300", width: str = "256") -> None:
    shards = read_codes(codes)
    begin = max(shards.layout.sizes)  # ids 0..K-1 are codes, K begins an image
    rows = torch.nn.functional.pad(shards.codes, (1, 0), value=begin)
    dataset = [{"input_ids": row, "labels": row} for row in rows]

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=begin + 1, n_positions=rows.shape[1], n_embd=int(width), n_layer=4, n_head=4,
        bos_token_id=begin, eos_token_id=None, pad_token_id=begin,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    arguments = TrainingArguments(
        output_dir=out, max_steps=int(steps), per_device_train_batch_size=8, learning_rate=1e-3, warmup_steps=10,
        logging_steps=max(1, int(steps) // 10), save_strategy="no", report_to=[], dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=dataset).train()
    model.save_pretrained(out)

    # From tokens back to images: the layout gives the codes their shape, the tokenizer decodes them.
    tokenizer = tvq.load(shards.tokenizer)
    if tokenizer.fingerprint != shards.fingerprint:
        sys.exit(f"{shards.tokenizer} is not the tokenizer that made {codes}")
    prompt = torch.full((4, 1), begin, device=model.device)
    length = shards.layout.length
    tokens = model.eval().generate(
        prompt, do_sample=True, top_k=100, min_new_tokens=length, max_new_tokens=length, suppress_tokens=[begin]
    )
    pictures = tokenizer.decode(shards.layout.unflatten(tokens[:, 1:].cpu()))
    grid = tvq.images.to_pil(torch.cat(list(pictures), dim=2))
    grid.save(Path(out, "samples.png"))
    print(f"four images by GPT-2: {Path(out, 'samples.png')}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
