"""What priors gave before their contract: samples, likelihoods, losses and gradients, kept in `recorded.safetensors`.

    python -m tests.prior.record            # compares, prints what differs
    python -m tests.prior.record --write    # records anew

It was recorded where `Prior.forward` gave logits, and the loss was `F.cross_entropy` of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import prior
from prior.conditions import ClassConfig
from prior.model import Prior, PriorConfig
from prior.networks.gpt import GptConfig
from prior.sampling import Sampler
from prior.sequences import LayoutConfig

RECORD = Path(__file__).with_name("recorded.safetensors")
SHIPPED = "gpt-tiny-imagenet-64"
LABELS = torch.tensor([0, 17, 42, 77])
SAMPLERS = {
    "plain": Sampler(seed=3),
    "cold": Sampler(temperature=0),
    "guided": Sampler(guidance=3.0, seed=1),
    "top-k": Sampler(top_k=50, temperature=0.9, seed=2),
    "top-p": Sampler(top_p=0.9, guidance=2.0),
}
TINY = {
    "grid": LayoutConfig(grids=((3, 4),), levels=1, sizes=(11,)),
    "levels": LayoutConfig(grids=((2, 3),), levels=2, sizes=(7, 5)),
    "grids": LayoutConfig(grids=((1, 1), (2, 2), (3, 4)), levels=1, sizes=(4, 9, 6)),
    "row": LayoutConfig(grids=((9,),), levels=1, sizes=(7,)),
}


def machine() -> str:
    """What decides rounding: bitwise results are promised on one of these alone."""
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


def shipped() -> dict[str, Tensor]:
    """Samples int16 `(4, N)` of the shipped prior, the log-likelihoods float32 `(4,)` of some of them."""
    model = prior.load(SHIPPED)
    length = model.layout.length
    found = {f"samples/{name}": model.sample(4, LABELS, sampler) for name, sampler in SAMPLERS.items()}
    plain = found["samples/plain"]
    top = plain.clone()
    top[:, length // 2 :] = -1
    found["samples/known half"] = model.sample(4, LABELS, Sampler(seed=9), top)
    scattered = plain.clone()
    scattered[:, 1::3] = -1
    scattered[0, 0] = -1
    found["samples/known scattered"] = model.sample(4, LABELS, Sampler(seed=9, guidance=1.5), scattered)
    found["samples/later"] = model.sample(2, LABELS[2:], Sampler(seed=3), first=2)
    found["samples/without class"] = model.sample(2)
    found["samples/by name"] = model.sample(1, "goldfish", Sampler(guidance=3))
    with torch.inference_mode():
        found["likelihood/class"] = model.log_likelihood(plain, LABELS).clone()
        found["likelihood/none"] = model.log_likelihood(plain).clone()
    found["samples/bfloat16"] = model.bfloat16().sample(2, LABELS[:2], Sampler(guidance=2.0))
    return {name: value.to(torch.int16) if name.startswith("samples") else value for name, value in found.items()}


def tiny(name: str) -> dict[str, Tensor]:
    """Three losses in training, one of each batch, and the gradients of their sum."""
    layout = TINY[name]
    torch.manual_seed(7)
    network = GptConfig(layers=2, dim=16, heads=2, multiple=16, token_dropout=0.1, residual_dropout=0.1)
    model = Prior(PriorConfig(network=network, condition=ClassConfig(num_classes=3, dropout=0.3), layout=layout))
    sizes = torch.tensor(layout.sizes)[model.layout.streams()]
    found = {}
    for batch in range(3):
        torch.manual_seed(100 + batch)
        tokens, labels = (torch.rand(6, model.layout.length) * sizes).long(), torch.arange(6) % 3
        loss = model(tokens, labels)
        loss.backward()
        found[f"loss {batch}"] = loss.detach()
    found |= {f"gradient {key}": value.grad for key, value in model.named_parameters() if value.grad is not None}
    return {f"{name}/{key}": value for key, value in found.items()}


def record() -> dict[str, Tensor]:
    """Everything, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = shipped()
        for name in TINY:
            found |= tiny(name)
    finally:
        torch.set_num_threads(threads)
    return found


def recorded() -> tuple[dict[str, Tensor], str]:
    """The kept tensors, and the machine that they are from."""
    with safe_open(RECORD, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["machine"]  # noqa: SIM118


def main() -> int:
    found = record()
    if "--write" in sys.argv:
        save_file({name: value.contiguous() for name, value in found.items()}, RECORD, {"machine": machine()})
        return 0
    kept, of = recorded()
    differing = [name for name in kept if not torch.equal(kept[name], found[name])]
    print(f"recorded on {of}, this is {machine()}: {len(differing)} of {len(kept)} tensors differ")
    print("\n".join(differing))
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
