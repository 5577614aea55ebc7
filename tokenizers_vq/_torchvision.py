"""Lets `import torchvision` succeed beside a torch build that its compiled operators were not built for.

timm and lpips import torchvision, whose Python side describes `torchvision::nms` to torch and fails where the compiled
library did not load (a CUDA wheel beside a CPU torch). Nothing here uses those operators, so their schemas are enough.
On a matched install the library loads, the operators exist, and this module declares nothing.
Imported first by every sub-package that reaches torchvision, timm or lpips.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None  # a declared operator lives as long as its library object


def _declare_missing_operators() -> None:
    global _library
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for compiled in sorted(Path(spec.origin).parent.glob("_C*")):
        try:
            torch.ops.load_library(str(compiled))
        except OSError:
            continue
    missing = [name for name in ("nms", "qnms") if not hasattr(torch.ops.torchvision, name)]
    if missing:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            _library.define(f"{name}{_SCHEMA}")


_declare_missing_operators()
