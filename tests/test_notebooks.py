"""The notebooks: kept with what they show, and run again from first to last cell with small settings."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import ROOT, missing

NOTEBOOKS = ROOT / "examples" / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
SMALL = {
    "first_steps": {"LIMIT": 2, "SAMPLES": 1},
    "train_and_look_inside": {"STEPS": 5, "SIZE": 32},
    "text_to_emoji": {"STEPS": 2, "PROMPTS": ["cat"]},
    "fine_tune_and_export": {"STEPS": 1, "LIMIT": 2, "FORMAT": "torch"},
}
MOST_BYTES = 400_000
_PATH = re.compile(r"(?<![\w.])/(?:home|root|work|tmp|Users)/")


def read(name: str) -> Any:
    if any(importlib.util.find_spec(package) is None for package in ("nbformat", "nbclient", "ipykernel")):
        missing("needs nbformat, nbclient and ipykernel: pip install 'tokenizers-vq[notebooks]'")
    import nbformat

    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """One kernel for all: what takes longest in small notebooks are imports."""
    shared: dict[str, Any] = {"folder": tmp_path_factory.mktemp("notebooks")}
    yield shared
    if "manager" in shared:
        shared["client"].stop_channels()
        from jupyter_core.utils import run_sync

        run_sync(shared["manager"].shutdown_kernel)(now=True)


def test_every_notebook_is_known() -> None:
    assert set(NAMES) == set(SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_as_it_ran(name: str) -> None:
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES and not _PATH.search(text)
    for link in re.findall(r"\]\((\w+\.ipynb)\)", text):
        assert (NOTEBOOKS / link).is_file(), link


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name: str, kernel: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = read(name)
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell

    (chosen,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert all(f"{key} = " in chosen.source for key in SMALL[name])
    small = "\n".join(f"{key} = {value!r}" for key, value in SMALL[name].items())
    cells = [new_code_cell("%reset -f"), *notebook.cells]
    cells.insert(cells.index(chosen) + 1, new_code_cell(small))
    notebook.cells = cells
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    where = {"metadata": {"path": str(kernel["folder"])}}
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where, km=kernel.get("manager"))
    if "client" in kernel:
        client.kc = kernel["client"]
    try:
        client.execute(cleanup_kc=False)
    finally:
        kernel |= {"manager": client.km, "client": client.kc}
