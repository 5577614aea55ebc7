"""Image tokenizers: images to discrete codes and back, trained, measured and modelled.

```python
import tokenizers_vq as tvq

tok = tvq.load("runs/a")  # a run, a saved folder, a shipped or published name, a Hub repository
codes = tok.encode(tvq.images.read("cat.jpg", size=64))  # (1, h, w) int64
image = tvq.images.to_pil(tok.decode(codes)[0])
```

`train`, `evaluate`, `report`, `compare`, `probe`, `encode_folder`, `doctor` and `ablate` do what the commands do.
Everything here is imported when first used, so that `import tokenizers_vq` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers_vq import images as images
    from tokenizers_vq.codes import CodeLayout as CodeLayout
    from tokenizers_vq.conversion import convert as convert
    from tokenizers_vq.encoding import BatchEncoder as BatchEncoder
    from tokenizers_vq.models import create as create
    from tokenizers_vq.models import list_models as list_models
    from tokenizers_vq.models import load as load
    from tokenizers_vq.tokenizer import Tokenizer as Tokenizer
    from tokenizers_vq.tokenizer import TokenizerConfig as TokenizerConfig
    from tokenizers_vq.training.recipe import list_recipes as list_recipes
    from tokenizers_vq.verbs.ablate import ablate as ablate
    from tokenizers_vq.verbs.compare import compare as compare
    from tokenizers_vq.verbs.doctor import doctor as doctor
    from tokenizers_vq.verbs.encode_folder import encode_folder as encode_folder
    from tokenizers_vq.verbs.evaluate import evaluate as evaluate
    from tokenizers_vq.verbs.probe import probe as probe
    from tokenizers_vq.verbs.report import report as report
    from tokenizers_vq.verbs.train import train as train

__version__ = "0.1.0"

_HOMES = {
    "CodeLayout": "codes",
    "BatchEncoder": "encoding",
    "Tokenizer": "tokenizer",
    "TokenizerConfig": "tokenizer",
    "convert": "conversion",
    "create": "models",
    "load": "models",
    "list_models": "models",
    "list_recipes": "training.recipe",
    "ablate": "verbs.ablate",
    "compare": "verbs.compare",
    "doctor": "verbs.doctor",
    "encode_folder": "verbs.encode_folder",
    "evaluate": "verbs.evaluate",
    "probe": "verbs.probe",
    "report": "verbs.report",
    "train": "verbs.train",
}
__all__ = [
    "BatchEncoder",
    "CodeLayout",
    "Tokenizer",
    "TokenizerConfig",
    "ablate",
    "compare",
    "convert",
    "create",
    "doctor",
    "encode_folder",
    "evaluate",
    "images",
    "list_models",
    "list_recipes",
    "load",
    "probe",
    "report",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "images":
        return importlib.import_module("tokenizers_vq.images")
    if name not in _HOMES:
        raise AttributeError(f"module 'tokenizers_vq' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(f"tokenizers_vq.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
