"""What the package adds to a process's start: `tvq --help` and imports, each a fresh process, against `import torch`.

python -m tests.benchmarks.startup
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from tests.benchmarks.bench import compare, parser, start

BOUND = "import torch (bound)"
LOAD = "load('vit-vqgan-tiny-64')"
GOAL = 0.5
"""seconds beyond the bound"""


def fresh(*command: str) -> Callable[[], object]:
    """A function that runs a command in a process of its own, on as many threads as this one; raises if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return partial(subprocess.run, command, check=True, capture_output=True, env=environment)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--no-peers", action="store_true", help="ours and the bound alone")
    options.add_argument("--quick", action="store_true", help="leave out what imports more than torch")
    given = options.parse_args(arguments)
    start(given)
    statements = {
        BOUND: "import torch",
        "import tokenizers_vq": "import tokenizers_vq",
        "import tokenizers_vq; .load": "import tokenizers_vq; tokenizers_vq.load",
        LOAD: f"import tokenizers_vq; tokenizers_vq.{LOAD}",
    }
    if given.quick:
        del statements["import tokenizers_vq; .load"], statements[LOAD]
    elif find_spec("diffusers") and not given.no_peers:
        statements["diffusers: VQModel"] = "import tokenizers_vq._torchvision; from diffusers import VQModel"
    runs = {name: fresh(sys.executable, "-c", statement) for name, statement in statements.items()}
    runs["tvq --help"] = fresh(str(Path(sysconfig.get_path("scripts")) / "tvq"), "--help")
    seconds = compare("start-up", runs, BOUND, repeats=given.repeats)
    print(f"  beyond the bound, goal under {GOAL:g} s:")
    for name, value in seconds.items():
        if "tvq" in name or "tokenizers_vq" in name or name == LOAD:
            print(f"  {name:<32} {value - seconds[BOUND]:>+10.2f} s")


if __name__ == "__main__":
    main()
