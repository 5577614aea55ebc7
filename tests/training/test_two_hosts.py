"""Two hosts: one is killed, the other ends with one line, and the same command goes on.

The hosts are two network namespaces with a cable between them where these may be made (root on Linux), else two
processes of one host.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT
from tests.prior.conftest import SMALL
from tests.prior.conftest import codes as codes
from tests.prior.conftest import tokenizer as tokenizer
from tests.prior.conftest import write_codes as write_codes
from tokenizers_vq.training.checkpoint import saved_steps


class Hosts(NamedTuple):
    enter: tuple[list[str], list[str]]
    """what a command on each begins with"""
    address: str
    interfaces: tuple[str, str]


def call(*words: str) -> bool:
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    names, ends = (f"tvq-{os.getpid()}-a", f"tvq-{os.getpid()}-b"), (f"va{os.getpid()}", f"vb{os.getpid()}")
    try:
        made = all(call("ip", "netns", "add", name) for name in names)
        made = made and call("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, ("10.77.0.1/24", "10.77.0.2/24"), strict=True):
            made = made and call("ip", "link", "set", end, "netns", name)
            made = made and call("ip", "-n", name, "addr", "add", address, "dev", end)
            made = made and all(call("ip", "-n", name, "link", "set", one, "up") for one in (end, "lo"))
        if made and all(call("ip", "netns", "exec", name, "true") for name in names):
            first, second = (["ip", "netns", "exec", name] for name in names)
            yield Hosts((first, second), "10.77.0.1", ends)
        else:
            yield Hosts(([], []), "127.0.0.1", ("lo", "lo"))
    except FileNotFoundError:  # no `ip`
        yield Hosts(([], []), "127.0.0.1", ("lo", "lo"))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def start(hosts: Hosts, port: int, codes: Path, out: Path) -> list[subprocess.Popen[str]]:
    fields = [one for one in SMALL if not one.startswith(("steps", "checkpoint_every", "evaluate_every"))]
    fields += ["steps=100000", "checkpoint_every=5", "evaluate_every=100000"]
    command = [sys.executable, "-m", "prior", "train", "gpt-tiny", str(codes), *fields, "--out", str(out)]
    found = []
    for rank, (enter, interface) in enumerate(zip(hosts.enter, hosts.interfaces, strict=True)):
        environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        environment |= {"MASTER_ADDR": hosts.address, "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
        environment |= {"GLOO_SOCKET_IFNAME": interface}
        whole = [*enter, *command, "--device", "cpu"]
        found.append(
            subprocess.Popen(whole, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    return found


def until(condition: Callable[[], bool], processes: list[subprocess.Popen[str]]) -> None:
    end = time.monotonic() + 500
    while not condition():
        assert time.monotonic() < end
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        time.sleep(0.1)


def test_one_host_is_killed_and_the_run_goes_on(hosts: Hosts, codes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = start(hosts, port, codes, out)
    try:
        until(lambda: bool(saved_steps(out / "checkpoints")), running)
        running[1].kill()
        _, err = running[0].communicate(timeout=500)
        last = err.splitlines()[-1]
        assert running[0].returncode == 2 and "Traceback" not in err, err
        assert re.fullmatch(
            r"tvq-prior: another process of this run has ended or cannot be reached; the checkpoint of step \d+ is kept"
            r": see what it says, then start all of them with the same command",
            last,
        )
        running[1].communicate()
        before = saved_steps(out / "checkpoints")[-1]
        running = start(hosts, port + 1 if port < 65535 else port - 1, codes, out)
        until(lambda: saved_steps(out / "checkpoints")[-1] > before, running)
        for process in running:
            process.send_signal(signal.SIGTERM)
        ends = [process.communicate(timeout=500) for process in running]
        assert [process.returncode for process in running] == [128 + signal.SIGTERM] * 2, ends
        assert "SIGTERM: saved at step" in ends[0][1]
    finally:
        for process in running:
            process.kill()
