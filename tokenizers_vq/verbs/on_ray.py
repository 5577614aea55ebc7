"""Shards of codes written by the workers of a Ray cluster, through Ray Data."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.shards import CodesInfo, Job, open_images, write_parts
from tokenizers_vq.encoding import BatchEncoder

_TRIES = 3
_OBJECT_STORE = 2**27  # of a cluster that is started here: numbers of shards are all that passes through it


class ShardEncoder:
    """Writes the shards whose numbers it is given; a worker of Ray makes one of it, which opens model and images once.

    A shard appears whole or not at all, and is the same file whoever writes it: when a worker dies, Ray gives its shard
    to another one, and nothing is lost or doubled.
    """

    def __init__(
        self, model: str, computing: dict[str, Any], data: dict[str, Any], info: dict[str, Any], **of: Any
    ) -> None:
        """What a `Job` is made of, as plain values: `of` are its folder `out` and its `batch_size`."""
        self.given = model, computing, data, info, of
        self.job: Job | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Numbers of shards -> how many images each read, and what went wrong."""
        counts, errors = [], []
        for part in batch["part"]:
            done: list[int] = []
            try:
                self._open()
                assert self.job is not None
                write_parts(self.job._replace(progress=done.append), [int(part)], self.opened)
            except (ValueError, OSError) as error:  # one line each; Ray would wrap them in its traceback
                errors.append(str(error))
            else:
                errors.append("")
            counts.append(sum(done))
        return {"part": batch["part"], "images": counts, "error": errors}

    def _open(self) -> None:
        if self.job is None:
            model, computing, data, info, of = self.given
            size = info["image_size"]
            encoder = BatchEncoder(model, image_size=tuple(size) if isinstance(size, list) else size, **computing)
            self.opened = open_images(DataConfig(**data))
            self.job = Job(encoder, DataConfig(**data), CodesInfo(**info), Path(of["out"]), of["batch_size"], None)


def check_ray() -> None:
    """Raises `ValueError` where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError('--on ray needs Ray: pip install "tokenizers-vq[ray]"')


def write_on_ray(job: Job, parts: list[int]) -> None:
    """Have shards written by the workers of the cluster that RAY_ADDRESS or `ray start` names, else of this machine.

    Model, images and `out` have to lie where every worker finds them. Raises `ValueError` for the first shard that
    cannot be written, in the words of the worker.
    """
    _start()
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    cuda = job.encoder.device.type == "cuda"  # type: ignore[attr-defined]
    workers = int(ray.cluster_resources().get("GPU" if cuda else "CPU", 1))
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(workers, len(parts))))
    made = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts)).map_batches(
        ShardEncoder,
        fn_constructor_kwargs={
            "model": _found_everywhere(str(job.encoder.name)),
            "computing": {"device": "cuda" if cuda else "cpu", "precision": job.encoder.precision},
            "data": {**job.data.to_dict(), "path": _found_everywhere(job.data.path)},
            "info": job.info.to_dict(),
            "out": str(job.out.resolve()),
            "batch_size": job.batch_size,
        },
        batch_size=1,
        compute=pool,
        num_cpus=None if cuda else 1,
        num_gpus=1 if cuda else None,
    )
    for row in made.iter_rows():
        if row["error"]:
            raise ValueError(row["error"])
        if job.progress is not None:
            job.progress(int(row["images"]))


def _start() -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is told to anybody
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if ray.is_initialized():
        return
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:  # no cluster is there
        for tries in reversed(range(_TRIES)):
            try:
                ray.init(address="local", object_store_memory=_OBJECT_STORE, include_dashboard=False, **quiet)
                return
            except Exception as error:  # on a busy machine its parts wait for one another in vain
                ray.shutdown()
                if not tries:
                    reason = " ".join(str(error).split())[:200]
                    raise ValueError(f"--on ray: Ray does not start on this machine: {reason}") from None


def _found_everywhere(name: str) -> str:
    """A path as workers find it, which start elsewhere."""
    return str(Path(name).resolve()) if "://" not in name and Path(name).exists() else name
