"""Peak memory of a training step and of encoding a large image against what must be held, counted tensor by tensor.

    python -m tests.benchmarks.memory --size 1024

Step: weights, gradients, optimizer state, and the most that autograd's saved tensors held at once. Encode: the image
and three times the largest activation (a block's input, its normalised copy, the convolution's output). Linux only.
"""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.benchmarks.bench import parser, start
from tests.benchmarks.ours import training_task
from tokenizers_vq import create


class Saved:
    """Bytes of the distinct storages that autograd's saved tensors hold, and the most there were."""

    def __init__(self, besides: list[Tensor]) -> None:
        self.besides = {tensor.untyped_storage().data_ptr() for tensor in besides}
        self.holders: Counter[int] = Counter()
        self.live = self.peak = 0

    def pack(self, tensor: Tensor) -> Held:
        held, storage = Held(tensor), tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self.besides:
            self.live += size if not self.holders[place] else 0
            self.peak = max(self.peak, self.live)
            self.holders[place] += 1
            weakref.finalize(held, self._free, place, size)
        return held

    def _free(self, place: int, size: int) -> None:
        self.holders[place] -= 1
        self.live -= size if not self.holders[place] else 0


class Held:
    """What the graph keeps in place of a tensor: it goes when the graph goes."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def step(size: int, width: int, precision: str) -> tuple[float, float]:
    """Counted and used bytes of a whole step, beyond a process that has done a small one."""
    training_task(torch.zeros(2, 3, 32, 32), 32, precision)[1]()
    before = restart_high_water()
    images = torch.rand(8, 3, size, size).to(memory_format=torch.channels_last)
    task, run = training_task(images, width, precision)
    run()
    used = high_water() - before
    modules = list(task.modules.values())
    saved = Saved([tensor for module in modules for tensor in module.state_dict().values()])
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda held: held.tensor):
        run()
    parameters = sum(parameter.nbytes for module in modules for parameter in module.parameters())
    return 4 * parameters + saved.peak, used  # weights, gradients, AdamW's two averages


@torch.inference_mode()
def encode(size: int, precision: str) -> tuple[float, float]:
    """Counted and used bytes of encoding one image with the tiny VQGAN, beyond its weights."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tokenizer = create("vqgan-tiny-64").eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    largest = 0

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, output.nbytes)

    def run(side: int) -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=precision == "bf16"):
            tokenizer.encode(image[..., :side, :side])

    image = torch.rand(1, 3, size, size)
    hooks = [layer.register_forward_hook(note) for layer in tokenizer.modules() if isinstance(layer, nn.Conv2d)]
    run(64)
    before = restart_high_water()
    run(size)
    used = high_water() - before
    for hook in hooks:
        hook.remove()
    return image.nbytes + 3 * largest, used + image.nbytes


def restart_high_water() -> float:
    """Resident bytes now, from where the high-water mark starts again."""
    Path("/proc/self/clear_refs").write_text("5")
    return high_water()


def high_water() -> float:
    status = Path("/proc/self/status").read_text()
    return 1024 * float(status.split("VmHWM:")[1].split()[0])


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--size", type=int, default=512, help="pixels of a side of the encoded image (default: 512)")
    options.add_argument("--step-size", type=int, default=64, help="pixels of a side in the step (default: 64)")
    options.add_argument("--width", type=int, default=32, help="channels of the step's first level (default: 32)")
    options.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    options.add_argument("--alone", choices=["step", "encode"], help="print one row's two numbers, from this process")
    given = options.parse_args(arguments)
    if given.alone:
        torch.set_num_threads(1)
        precision = given.precision[0]
        counts = (
            step(given.step_size, given.width, precision) if given.alone == "step" else encode(given.size, precision)
        )
        print(*counts)
        return
    start(given)
    print(f"{'':<32} {'counted':>10}    {'used':>10}")
    sizes = ["--size", given.size, "--step-size", given.step_size, "--width", given.width]
    for row, pixels in (("step", given.step_size), ("encode", given.size)):
        for precision in given.precision:
            command = [sys.executable, "-m", "tests.benchmarks.memory", *map(str, sizes)]
            command += ["--alone", row, "--precision", precision]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            counted, used = map(float, output.splitlines()[-1].split())
            title = f"{row}, {pixels} px, {precision}"
            print(f"{title:<32} {counted / 1e6:>10.1f} MB {used / 1e6:>10.1f} MB {used / counted:>6.2f} x")


if __name__ == "__main__":
    main()
