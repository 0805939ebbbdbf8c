"""Builds the C++ program that checks kernels against the oracle's vectors, and the vectors. Both are kept in .cache/vectors."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vectors import write

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / ".cache" / "vectors"
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"


def tool(name: str) -> str | None:
    """A program on the path, beside the running interpreter, or in the repository's environment."""
    beside = Path(sys.executable).parent / name, REPOSITORY / ".venv" / "bin" / name
    return shutil.which(name) or next((str(path) for path in beside if path.exists()), None)


def missing(packages: dict[str, str]) -> str:
    """What is not installed of {program: Debian package}, as a sentence; empty if all is there."""
    absent = {name: package for name, package in packages.items() if tool(name) is None}
    names, wanted = ", ".join(absent), " ".join(dict.fromkeys(absent.values()))
    return f"not installed: {names}; sudo apt install {wanted}" if absent else ""


def run(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run to the end and keep the output. Waiting threads sleep: a busy machine must not make a test slow."""
    env = os.environ | {"OMP_WAIT_POLICY": "passive"} | environment
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=env, check=False)


def build(name: str, *options: str) -> Path:
    """The runner, built with these CMake options; only what changed since the last time is compiled."""
    folder = CACHE / name
    configure = ["-S", REPOSITORY, "-B", folder, "-DSONIQ_PYTHON=OFF", "-DSONIQ_VECTOR_RUNNER=ON", *options]
    if ninja := tool("ninja"):
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    for step in (configure, ["--build", folder, "--parallel"]):
        done = run([tool("cmake") or "cmake", *step])
        assert done.returncode == 0, f"cmake {name} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return folder / "soniq_vectors"


def build_with_sanitizers(name: str, *options: str) -> Path:
    """The runner with AddressSanitizer and UndefinedBehaviorSanitizer."""
    flags = [f"-DCMAKE_CXX_FLAGS={SANITIZERS}", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", "-DSONIQ_OPTIMIZE=-O1"]
    return build(name, *flags, *options)


def cases() -> Path:
    """The file of all cases, written once for each version of its sources."""
    digest = hashlib.sha256(b"".join(write.sources())).hexdigest()[:16]
    path = CACHE / f"cases-{digest}.bin"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob("cases-*"):
            old.unlink()
        unfinished = path.with_suffix(f".{os.getpid()}")
        write.write(unfinished)
        unfinished.rename(path)
    return path
