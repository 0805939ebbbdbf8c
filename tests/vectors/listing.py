"""The instructions that a tier's kernels were compiled to."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vectors import harness


def object_file(runner: Path, tier: str) -> Path:
    """Where the kernels of a tier were compiled to, for a runner that harness.build made."""
    for entry in json.loads((runner.parent / "compile_commands.json").read_text()):
        if entry["file"].endswith(f"kernels/{tier}/table.cpp"):
            return runner.parent / re.search(r" -o (\S+)", entry["command"])[1]
    pytest.skip(f"this compiler cannot build {tier}")


def instructions(path: Path) -> list[tuple[str, str]]:
    """(bytes in hexadecimal, text) of every instruction."""
    listing = harness.run([harness.tool("objdump"), "--disassemble", "--wide", path]).stdout
    return re.findall(r"^ +[0-9a-f]+:\t((?:[0-9a-f]{2} )+) *\t(.+)$", listing, re.MULTILINE)


def only_evex(code: str, text: str) -> bool:
    """Whether a processor without AVX-512 refuses it: EVEX begins with 0x62; masks and registers above 15 need it."""
    return code.startswith("62 ") or bool(re.search(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])", text))
