"""`tvq encode --on ray`: the shards of one machine, written by workers of a Ray that is really started here."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

import tokenizers_vq as tvq
from tests.cli.conftest import save
from tests.kills import pictures
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.shards import Job, read_codes, shard_name, write_codes
from tokenizers_vq.encoding import BatchEncoder
from tokenizers_vq.verbs import on_ray

MARK = "TVQ_TEST_OF_RAY"
SHARDS = 8


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Ray on two processors and little memory; the workers' environment holds the mark."""
    from ray.cluster_utils import Cluster

    patch, mark = pytest.MonkeyPatch(), str(tmp_path_factory.mktemp("ray"))
    patch.setenv(MARK, mark)
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    waits = ("RAY_worker_register_timeout_seconds", "RAY_raylet_start_wait_time_s", "RAY_agent_register_timeout_ms")
    for patience in waits:  # on a busy machine
        patch.setenv(patience, "600000" if patience.endswith("ms") else "600")
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    head = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args={**head, **dict(zip(names, free_ports(4), strict=True))})
    ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
    yield mark
    ray.shutdown()
    started.shutdown()
    patch.undo()


def kill_workers(mark: str) -> int:
    """Kill this cluster's workers that hold a `ShardEncoder`; returns how many there were."""
    killed = 0
    for process in Path("/proc").iterdir():
        try:
            name = (process / "cmdline").read_bytes()
            its = name.startswith(b"ray::") and b"ShardEncoder" in name
            if its and f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
                killed += 1
        except (OSError, ValueError):
            continue
    return killed


def test_a_worker_that_is_killed_loses_and_doubles_nothing(cluster: str, tmp_path: Path) -> None:
    model, photos = save(tmp_path / "model", 1), pictures(tmp_path / "photos", 96)
    (photos / "00050.png").write_bytes(b"no picture")
    wanted = tvq.encode_folder(str(model), photos, tmp_path / "one", shards=SHARDS, batch_size=1, device="cpu")
    out, killed = tmp_path / "many", []

    def watch() -> None:
        while len(list(out.glob("codes-*.parquet"))) < 2:
            time.sleep(0.002)
        killed.append(kill_workers(cluster))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    options = {"shards": SHARDS, "batch_size": 1, "device": "cpu"}
    found = tvq.encode_folder(str(model), photos, out, on="ray", **options)
    watcher.join()
    assert killed[0] >= 1
    assert found._replace(out=wanted.out) == wanted and set(found.broken) == {"00050.png"} and found.images == 95
    keys = read_codes(out).keys
    assert len(set(keys)) == len(keys) == 95
    for path in sorted((tmp_path / "one").iterdir()):
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "one").iterdir())

    # Started again it encodes what is missing, and nothing else; the workers' errors come back as one line.
    done: list[int] = []
    (out / shard_name(3, SHARDS)).unlink()
    again = tvq.encode_folder(str(model), photos, out, on="ray", progress=lambda n, _: done.append(n), **options)
    assert again == found and done == [12]
    (out / shard_name(3, SHARDS)).unlink()
    with pytest.raises(ValueError, match=r"00050.png") as error:
        tvq.encode_folder(str(model), photos, tmp_path / "strict", on="ray", on_broken="stop", **options)
    assert "\n" not in str(error.value)


def test_a_worker_writes_the_very_files(tmp_path: Path) -> None:
    """What a worker does, without Ray around it."""
    model, photos = save(tmp_path / "model", 1), pictures(tmp_path / "photos", 10)
    wanted = tvq.encode_folder(str(model), photos, tmp_path / "one", shards=3, device="cpu")
    made = []

    def here(job: Job, parts: list[int]) -> None:
        made.append(parts)
        data, info = job.data.to_dict(), job.info.to_dict()
        computing = {"device": "cpu", "precision": job.encoder.precision}
        worker = pickle.loads(
            pickle.dumps(on_ray.ShardEncoder(str(model), computing, data, info, out=str(job.out), batch_size=32))
        )
        done = worker({"part": np.array(parts)})
        assert done["error"] == [""] * 3 and sum(done["images"]) == 10
        # Other images than those of the first process, or another model, are refused in its words.
        (photos / "00003.png").write_bytes(b"other bytes")
        other = on_ray.ShardEncoder(str(model), computing, data, info, out=str(job.out), batch_size=32)
        assert "holds other images here" in other({"part": np.array([0])})["error"][0]
        gone = on_ray.ShardEncoder(str(tmp_path / "gone"), computing, data, info, out=str(job.out), batch_size=32)
        assert "gone" in gone({"part": np.array([0])})["error"][0]

    encoder = BatchEncoder(str(model), device="cpu")
    write_codes(encoder, DataConfig(path=str(photos)), tmp_path / "two", shards=3, elsewhere=here)
    assert made == [[0, 1, 2]] and wanted.images == 10
    for path in sorted((tmp_path / "one").iterdir()):
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes(), path.name


def test_what_ray_cannot_do_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tokenizer = tvq.create("vqvae-tiny-64", ["encoder.width=16", "decoder.width=16", "image_size=32"])
    with pytest.raises(ValueError, match="save it, and give the folder"):
        tvq.encode_folder(tokenizer, tmp_path, tmp_path / "c", on="ray")
    with pytest.raises(ValueError, match="on=spark: nothing but ray is known"):
        tvq.encode_folder("m", tmp_path, tmp_path / "c", on="spark")  # type: ignore[arg-type]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start one process alone"):
        tvq.encode_folder("m", tmp_path, tmp_path / "c", on="ray")
    monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "tokenizers-vq\[ray\]"'):
        tvq.encode_folder("m", tmp_path, tmp_path / "c", on="ray")
