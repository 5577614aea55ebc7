"""A U-Net that doubles pictures, 32 to 64 px, with this package's losses and a `pair` discriminator; no tokenizer.

python examples/upscale.py PHOTOS TEST OUT.png STEPS   (OUT: pictures of TEST by bicubic, by the U-Net, as they are)"""

import sys

import torch
from torch import nn

import tokenizers_vq as tvq
from tokenizers_vq.data.loading import DataConfig, evaluation_batches, training_batches
from tokenizers_vq.discriminators import PairConfig, PatchGANConfig
from tokenizers_vq.evaluation import measures, metrics
from tokenizers_vq.losses import Hinge, LpipsConfig, PerceptualConfig, perceptual
from tokenizers_vq.losses.record import Record
from tokenizers_vq.networks.blocks import Downsample, ResidualBlock, Upsample
from tokenizers_vq.resizing import resize


class UNet(nn.Sequential):
    def __init__(self, width: int, depth: int) -> None:
        half = [Downsample(width), UNet(width, depth - 1), Upsample(width)] if depth else []
        super().__init__(ResidualBlock(width, width, 8), *half)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + super().forward(input)


def main(photos: str, test: str, out: str, steps: str) -> None:
    torch.manual_seed(0)
    judge, features = perceptual.LpipsNetwork("squeeze"), measures.backbone_features("tf_efficientnet_lite0", "head", 3)
    near = (LpipsConfig(net="vgg") if perceptual.find_trunk("vgg") else PerceptualConfig()).build()
    d = PairConfig(discriminator=PatchGANConfig(width=32, layers=2), blur=2.0).build(3, (64, 64))
    unet = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), UNet(32, 2), Upsample(32), nn.Conv2d(32, 3, 3, padding=1))
    optimizer = torch.optim.Adam([*unet.parameters(), *d.parameters()], 5e-4, (0.5, 0.9))
    batches = training_batches(DataConfig(path=photos), image_size=64, channels=3, batch_size=16)
    for _, images in zip(range(int(steps)), (batch["images"] for batch in batches), strict=False):
        output = resize(small := resize(images, 32, 32), 64, 64) + unet(small)
        record = Record(images, output, discriminator=d)
        loss = nn.functional.l1_loss(record.output, images) + near(record) + 0.02 * Hinge().generator(record)
        optimizer.zero_grad()
        output.backward(torch.autograd.grad(loss, record.output)[0])  # the record is cut from the network, and spares d
        Hinge().discriminator(*(d(*d.inputs(record, seen)) for seen in (images, output.detach()))).backward()
        optimizer.step()
    torch.set_grad_enabled(False)
    held_out = evaluation_batches(DataConfig(path=test, limit=200), image_size=64, channels=3, batch_size=200)
    images = next(iter(held_out))["images"]
    bicubic = resize(small := resize(images, 32, 32), 64, 64)
    rows = [bicubic, (bicubic + unet(small)).clamp(-1, 1), images]
    for name, row in zip(("bicubic", "U-Net"), rows, strict=False):
        distance = metrics.FrechetDistance(features, features.dim)
        distance.update(images, row)
        figures = metrics.psnr(images, row).mean(), judge(images, row).mean(), distance.compute()[0]
        print("{}: PSNR {:.2f} dB, LPIPS-squeeze {:.4f}, feature distance {:.2f}".format(name, *figures))
    tvq.images.to_pil(torch.cat([torch.cat(list(row[:8]), 2) for row in rows], 1)).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 5 else sys.exit(__doc__)
