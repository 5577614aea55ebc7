"""The command of the guide for several processes, as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tokenizers_vq.models import load


def test_the_command_of_the_guide_trains_in_two_processes(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "guides" / "scale.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^(torchrun .*--device cpu)", guide, re.MULTILINE)
    words = shlex.split(line.replace("data=photos/", "data=skimage").replace("runs/a", str(tmp_path / "run")))
    assert words[:3] == ["torchrun", "--nproc_per_node", "2"]
    command = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    small = ["steps=2", "batch_size=4", "image_every=0", "losses=[{kind: l1}]", "adversary=null", "data.workers=0"]
    small += [f"model.{part}.{field}" for part in ("encoder", "decoder") for field in ("width=8", "groups=4")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *small, "log_every=1"], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(text) for text in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert load(tmp_path / "run").code_layout().length == 256
