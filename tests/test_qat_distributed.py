"""Two processes train one network, copied (DDP) and sharded (FSDP2): the same parameters everywhere, and the packed bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

WORKER = Path(__file__).with_name("distributed_worker.py")
SECONDS = 240


def test_two_processes(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "ignore", str(WORKER)]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    done = {path.name for path in tmp_path.iterdir()}
    assert {f"{way}.{rank}" for way in ("by_ddp", "by_fsdp") for rank in range(2)} <= done
