"""The demo runs, proves every output and leaves a network one can load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for package in ("sklearn", "matplotlib", "rich"):
    pytest.importorskip(package)

from soniq_kernels import qat

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / "demo.py", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def test_demo(tmp_path, monkeypatch):
    result = run("--quick", "--out", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "identical outputs: 3,600 of 3,600" in result.stdout
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    monkeypatch.syspath_prepend(EXAMPLES)
    from demo_data import digits
    from demo_training import network

    images = digits().test_images
    assert qat.load(tmp_path / "network.safetensors", network(8))(images).shape == (360, 10)


def test_demo_says_what_is_wrong(tmp_path):
    result = run("--data", "cifar")
    assert result.returncode == 2 and "expected digits, fashion-mnist or a folder" in result.stderr
    result = run("--data", tmp_path)
    assert result.returncode == 1 and "lacks one of train-images-idx3-ubyte.gz" in result.stderr
