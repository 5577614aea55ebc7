"""Checkpoints of a run: complete, written aside and renamed, so that the newest whole one can always be resumed.

`checkpoints/N` is everything after step N: tensors as safetensors, all the rest in `checkpoint.json`, which says how
long each file is and its sha256. Nothing in it is unpickled: a run that comes from a stranger runs nothing.

Of a sharded run (FSDP) every process writes its own parts. Parts are cut along the first dimension, so that any number
of processes, one among them, can go on from them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenizers_vq import distributed
from tokenizers_vq.training import sharding
from tokenizers_vq.training.state_dicts import pack, shards_in, unpack
from tokenizers_vq.training.tracking import tell
from tokenizers_vq.writing import naming, remove, sync, write_atomically, write_tensors

INDEX = "checkpoint.json"
_SHARDED = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}


class Stateful(Protocol):
    """A network, an optimizer, or whatever else a checkpoint keeps."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class DamagedError(ValueError):
    """A checkpoint that cannot be read; the message says which file and why."""


class Checkpoints:
    """The folder `checkpoints` of a run, for the parts of a task: `modules`, `optimizers` and further `state`.

    Raises `ValueError` where processes hold parts of a network only, since a checkpoint is of whole ones.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        keep: int,
        *,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, Any],
        state: Mapping[str, nn.Module],
    ) -> None:
        if accelerator.distributed_type in _SHARDED:
            raise ValueError(
                f"checkpoints are of whole networks, not of {accelerator.distributed_type.value}: train with "
                "`accelerate launch --multi_gpu`, which gives every process all of it"
            )
        self.folder, self.accelerator, self.keep = folder, accelerator, keep
        self.roles: dict[str, Mapping[str, Any]] = {
            "modules": {name: accelerator.unwrap_model(module) for name, module in modules.items()},
            "optimizers": optimizers,
            "state": state,
        }
        self.sharded = any(sharding.sharded(module) for module in self.roles["modules"].values())
        self.blank = frozenset(self._not_finite())  # measures that begin as NaN
        self.step = 0
        """of the checkpoint that was saved or restored last"""

    @property
    def parts(self) -> dict[str, Stateful]:
        """What is saved, by role and name: `modules.tokenizer`."""
        return {f"{role}.{name}": part for role, parts in self.roles.items() for name, part in parts.items()}

    def steps(self) -> list[int]:
        """Steps of the checkpoints, rising."""
        return saved_steps(self.folder)

    def not_finite(self) -> list[str]:
        """Names of weights, averages and buffers that hold NaN or infinity, as they did not at first."""
        found = [name.partition(".")[2] for name in self._not_finite() if name not in self.blank]
        if self.sharded:  # each process knows of its own parts
            found = list(dict.fromkeys(name for part in sharding.gathered(found) for name in part))
        return found

    def _not_finite(self) -> list[str]:
        return [
            f"{name}.{key}"
            for name, part in self.parts.items()
            if not name.startswith("optimizers.")
            for key, tensor in part.state_dict().items()
            if not _finite(tensor)
        ]

    def restore(self) -> int:
        """Load the newest checkpoint that is whole; returns its step, 0 where there is none. Called by all processes.

        Newer ones that are damaged are named in a line. Raises `ValueError` where none is whole, or where one does not
        fit the task.
        """
        steps, damaged, found = self.steps(), [], None
        if self.accelerator.is_main_process:
            for step in reversed(steps):
                try:
                    found = self._read(step)
                except DamagedError as error:
                    damaged.append(str(error))
                else:
                    break
        chosen = 0 if not steps else -1 if found is None else step
        chosen = int(distributed.from_first(torch.tensor(chosen, device=self.accelerator.device)))
        if chosen < 0:
            raise ValueError(
                f"{self.folder} holds no checkpoint that can be read ({'; '.join(damaged)}): restore one, or begin "
                "under another --out"
            )
        if chosen:
            for reason in damaged:
                tell(self.accelerator, f"passed over: {reason}")
            if damaged:
                tell(self.accelerator, f"resuming from the older checkpoint {self.folder / str(chosen)}")
            self._fill(self._read(chosen) if found is None else found, chosen)
            found = None
        if self.accelerator.is_main_process:
            self._drop_older(chosen)  # which a kill may have prevented
        self.step = chosen
        return chosen

    def save(self, step: int) -> None:
        """Write `checkpoints/<step>`; called by all processes. Raises `WriteError`, and the older ones stay."""
        aside = self.folder / f".{step}.partial"
        if self.sharded:
            self._save_parts(aside, step)
        elif self.accelerator.is_main_process:
            self._begin(aside)
            self._finish(aside, step, lambda: self._write(aside, step))
        self.step = step
        self.accelerator.wait_for_everyone()

    def _begin(self, aside: Path) -> None:
        with naming(aside):
            remove(aside)
            aside.mkdir(parents=True)

    def _finish(self, aside: Path, step: int, write: Callable[[], dict[str, Any]]) -> None:
        """What `write` gives is the index, after which the folder counts."""
        try:
            write_atomically(aside / INDEX, json.dumps(write()) + "\n")
            sync(aside)
            with naming(self.folder / str(step)):
                self._put(aside, step)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise

    def _save_parts(self, aside: Path, step: int) -> None:
        """Every process writes what it holds, then the first the index. Where one cannot, none goes on."""
        index: dict[str, Any] | str = ""
        try:
            if self.accelerator.is_main_process:
                self._begin(aside)
        except OSError as error:
            index = str(error)
        # None writes, nor waits for the others, where there is no folder to write to.
        if not (problem := next(filter(None, sharding.gathered(index)), "")):
            try:
                suffix = f".{self.accelerator.process_index}-{self.accelerator.num_processes}"
                index = self._write(aside, step, suffix)
            except OSError as error:
                index = str(error)
        indices = sharding.gathered(index)
        if problem := problem or next((one for one in indices if isinstance(one, str)), ""):
            if self.accelerator.is_main_process:
                shutil.rmtree(aside, ignore_errors=True)
            raise OSError(problem)
        if self.accelerator.is_main_process:
            whole = indices[0]
            for name, part in whole["parts"].items():
                part["files"] = [one["parts"][name]["files"][0] for one in indices]
            self._finish(aside, step, lambda: whole)

    def _write(self, folder: Path, step: int, suffix: str = "") -> dict[str, Any]:
        """Write this process's files; what the index says of them. `suffix`: of names, where there are several."""
        index: dict[str, Any] = {"step": step, "processes": self.accelerator.num_processes, "parts": {}}
        for role, parts in self.roles.items():
            for number, (name, part) in enumerate(parts.items()):
                tensors, rest = pack(part.state_dict())
                path = folder / f"{_STEMS[role]}{f'_{number}' if number else ''}{suffix}.safetensors"
                write_tensors(path, tensors)
                file = {"file": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}
                index["parts"][f"{role}.{name}"] = {**({"files": [file]} if suffix else file), "rest": rest}
        return index

    def _put(self, aside: Path, step: int) -> None:
        """Rename, and take older ones away; what bears this step or a later one was damaged and is made again."""
        final = self.folder / str(step)
        if final.exists():
            self._doom(step)
        aside.rename(final)
        for other in self.steps():
            if other > step:
                self._doom(other)
        self._drop_older(step)

    def _drop_older(self, step: int) -> None:
        older = [other for other in self.steps() if other < step]
        for other in older[: 1 - self.keep or None]:
            self._doom(other)

    def _doom(self, step: int) -> None:
        # Renamed first: a folder half removed must not look like a checkpoint.
        aside = self.folder / f".{step}-old.partial"
        remove(aside)
        shutil.rmtree((self.folder / str(step)).rename(aside))

    def _read(self, step: int) -> dict[str, Any]:
        """State dicts by part. Raises `DamagedError`."""
        folder = self.folder / str(step)
        pickled = not (folder / INDEX).exists() and any(folder.glob("*.bin"))
        # Of as many parts as there are processes, each reads its own; the first looks at all files.
        own = self.accelerator.process_index if self.sharded else None
        found = (
            self._read_pickled(folder) if pickled else _read_index(folder, step, own, self.accelerator.num_processes)
        )
        for name, state in found.items():
            if not isinstance(state, dict):
                raise DamagedError(f"{folder} holds no state of {name}")
        weights = [name for name in found if not name.startswith("optimizers.")]
        bad = [
            key
            for name in weights
            for key, tensor in found[name].items()
            if not _finite(tensor) and f"{name}.{key}" not in self.blank
        ]
        if bad:
            raise DamagedError(f"{folder} holds NaN or infinity in {bad[0]}{_more(bad)}")
        return found

    def _read_pickled(self, folder: Path) -> dict[str, Any]:
        """A checkpoint of accelerate's, as runs wrote them before; of its pickles only tensors and plain values."""
        found = {}
        for role, (stem, ending) in _PICKLED.items():
            for number, name in enumerate(self.roles[role]):
                path = folder / f"{stem}{number if stem.endswith('_') else f'_{number}' if number else ''}{ending}"
                found[f"{role}.{name}"] = _reading(path, load_file if role == "modules" else _load_plain)
                if role == "modules":  # of several processes, wrapped
                    found[f"{role}.{name}"] = {
                        key.removeprefix("module."): tensor for key, tensor in found[f"{role}.{name}"].items()
                    }
        return found

    def _fill(self, found: Mapping[str, Any], step: int) -> None:
        folder = self.folder / str(step)
        other = sorted(found.keys() ^ self.parts.keys())
        if other:
            raise ValueError(
                f"{folder} and the recipe differ in {', '.join(other)}: it is of another version, so begin under "
                "another --out"
            )
        for name, part in self.parts.items():
            try:
                sharding.fill(part, found[name], local=self._local(folder))
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{folder} does not fit the recipe's {name} ({' '.join(str(error).split())[:200]}): it is of "
                    "another version, so start in another --out"
                ) from None

    def _local(self, folder: Path) -> bool:
        """Whether `_read` gives this process's parts alone."""
        return self.sharded and _parts_in(folder) == self.accelerator.num_processes


_STEMS = {"modules": "model", "optimizers": "optimizer", "state": "state"}
_PICKLED = {
    "modules": ("model", ".safetensors"),
    "optimizers": ("optimizer", ".bin"),
    "state": ("custom_checkpoint_", ".pkl"),
}


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, rising."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal() and path.is_dir())


def newest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and state dicts by part of the newest whole checkpoint in a folder; None where there is none at all.

    Raises `ValueError` where none can be read.
    """
    damaged = []
    for step in reversed(saved_steps(folder)):
        try:
            return step, _read_index(folder / str(step), step)
        except DamagedError as error:
            damaged.append(str(error))
    if damaged:
        raise ValueError(f"{folder} holds no checkpoint that can be read ({'; '.join(damaged)})")
    return None


def _parts_in(folder: Path) -> int:
    """How many processes' parts a checkpoint is made of; 0 where it is whole."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return len(next(iter(index["parts"].values())).get("files", ()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, StopIteration):
        return 0


def _read_index(folder: Path, step: int, own: int | None = None, world: int = 1) -> dict[str, Any]:
    """State dicts by part, each file held against its length and checksum. Raises `DamagedError`.

    Parts of several processes are joined; `own`: but for this process of a sharded run of as many, which gets its own.
    """
    index = _reading(folder / INDEX, lambda path: json.loads(path.read_text(encoding="utf-8")))
    try:
        if index["step"] != step:
            raise DamagedError(f"{folder / INDEX} is of step {index['step']}")
        found = {}
        for name, part in index["parts"].items():
            files = part.get("files", [part])
            alone = own if own is not None and len(files) == world and "files" in part else None
            read = [
                _read_file(folder, file, load=alone in (None, number))
                for number, file in enumerate(files)
                if alone in (None, 0, number)
            ]
            tensors = [one for one in read if one is not None]
            found[name] = unpack(part["rest"], _joined(tensors, shards_in(part["rest"])))
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError, RuntimeError) as error:
        raise DamagedError(
            f"{folder / INDEX} is not an index of a checkpoint ({type(error).__name__}: {error})"
        ) from None
    return found


def _read_file(folder: Path, file: Mapping[str, Any], load: bool) -> dict[str, Tensor] | None:
    path = folder / Path(file["file"]).name
    if not path.is_file():
        raise DamagedError(f"{path} is missing")
    if path.stat().st_size != file["bytes"]:
        raise DamagedError(f"{path} has {path.stat().st_size} bytes, not {file['bytes']}")
    if _sha256(path) != file["sha256"]:
        raise DamagedError(f"{path} is not what was saved: its sha256 differs")
    return _reading(path, load_file) if load else None


def _joined(parts: list[dict[str, Tensor]], cut: set[str]) -> dict[str, Tensor]:
    """Tensors by name, of several processes' parts."""
    if len(parts) == 1:
        return parts[0]
    return {
        name: torch.cat([part[name] for part in parts]) if name in cut else tensor for name, tensor in parts[0].items()
    }


def _reading(path: Path, read: Callable[[Path], Any]) -> Any:
    """What `read` makes of a file. Raises `DamagedError`, whatever is wrong with it."""
    if not path.is_file():
        raise DamagedError(f"{path} is missing")
    try:
        return read(path)
    except Exception as error:  # of readers that document no list of what they raise
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DamagedError(f"{path} ({path.stat().st_size} bytes) cannot be read ({reason})") from None


def _load_plain(path: Path) -> Any:
    """Tensors and plain values of a file of `torch.save`; anything else is refused, not run."""
    return torch.load(path, map_location="cpu", weights_only=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _finite(value: Any) -> bool:
    value = value.to_local() if sharding.is_shard(value) else value
    return not (isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()))


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
