"""A small latent diffusion: a UNet of diffusers learns to draw a tokenizer's features; the decoder makes them pictures.

python examples/latent_diffusion.py MODEL PHOTOS OUT.png [STEPS] [WIDTH]

MODEL: one grid of codes. WIDTH: a multiple of 32. OUT.png: two rows from drawn features, two from their nearest codes.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F

import tokenizers_vq as tvq
from prior.decoding import grid
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.loading import evaluation_batches


def main(model: str, photos: str, out: str, steps: str = "1500", width: str = "32") -> None:
    from diffusers import DDIMScheduler, UNet2DModel  # loads torchvision, which the package has prepared by now

    torch.manual_seed(0)
    tokenizer = tvq.load(model).requires_grad_(False)
    size, channels, quantizer = tokenizer.config.image_size, tokenizer.config.channels, tokenizer.quantizer
    loaded = evaluation_batches(DataConfig(path=photos, split="all"), image_size=size, channels=channels, batch_size=32)
    x = torch.cat([tokenizer.encode_features(batch["images"]).float() for batch in loaded])
    unit = torch.allclose(quantizer.lookup(quantizer.encode(x[:8])).norm(dim=1), torch.ones(()), atol=1e-3)
    x = F.normalize(x, dim=1) if unit else x  # codes of length 1, of a cosine codebook: the decoder knows no others
    mean, std = x.mean(dim=(0, 2, 3), keepdim=True), x.std(dim=(0, 2, 3), keepdim=True)
    unet = UNet2DModel(
        x.shape[-1], x.shape[1], x.shape[1], layers_per_block=1, block_out_channels=(int(width), 2 * int(width)),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    ddim = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)
    optimizer = torch.optim.AdamW(unet.parameters())
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=int(steps))
    for step in range(1, int(steps) + 1):
        clean = (x[torch.randint(len(x), (32,))] - mean) / std
        noise, t = torch.randn_like(clean), torch.randint(1000, (32,))
        loss = F.mse_loss(unet(ddim.add_noise(clean, noise, t), t).sample, ddim.get_velocity(clean, noise, t))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        if step % 100 == 0:
            print(f"step {step}: {loss:.3f}", flush=True)
    ddim.set_timesteps(50)
    drawn = torch.randn(16, *x.shape[1:])
    for t in ddim.timesteps:
        drawn = ddim.step(unet(drawn, t).sample.detach(), t, drawn).prev_sample
    drawn = F.normalize(drawn * std + mean, dim=1) if unit else drawn * std + mean
    pictures = torch.cat((tokenizer.decode_features(drawn), tokenizer.decode(quantizer.encode(drawn))))
    tvq.images.to_pil(grid(pictures, columns=8)).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 3 else sys.exit(__doc__)
