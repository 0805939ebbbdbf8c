"""The avxvnni tier on machines without AVX-VNNI: which instructions its object file has, and what they compute."""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path

import pytest

from vectors import harness

PACKAGES = {"cmake": "cmake", "g++": "g++", "objdump": "binutils"}
EVERY = 31  # each vpdpbusd is a trap


@pytest.fixture(scope="module")
def runner():
    """The runner as it is compiled for this machine."""
    if platform.machine() != "x86_64":
        pytest.skip("AVX-VNNI is x86's")
    if reason := harness.missing(PACKAGES):
        pytest.skip(reason)
    return harness.build("host", f"-DCMAKE_CXX_COMPILER={harness.tool('g++')}")


def object_file(runner, tier: str):
    """Where the kernels of a tier were compiled to."""
    for entry in json.loads((runner.parent / "compile_commands.json").read_text()):
        if entry["file"].endswith(f"kernels/{tier}/table.cpp"):
            return runner.parent / re.search(r" -o (\S+)", entry["command"])[1]
    pytest.skip(f"this compiler cannot build {tier}")


def instructions(path) -> list[tuple[str, str]]:
    """(bytes in hexadecimal, text) of every instruction."""
    listing = harness.run([harness.tool("objdump"), "--disassemble", "--wide", path]).stdout
    return re.findall(r"^ +[0-9a-f]+:\t((?:[0-9a-f]{2} )+) *\t(.+)$", listing, re.MULTILINE)


def only_evex(code: str, text: str) -> bool:
    """Whether a processor without AVX-512 refuses it: EVEX begins with 0x62; masks and registers above 15 need it."""
    return code.startswith("62 ") or bool(re.search(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])", text))


@pytest.mark.parametrize("tier", ["avx2", "avxvnni"])
def test_no_instruction_of_avx512(runner, tier):
    """These processors have the VEX encoding of vpdpbusd and nothing of EVEX."""
    found = instructions(object_file(runner, tier))
    assert len(found) > 1000, "the listing could not be read"
    assert not [text for code, text in found if only_evex(code, text)]


def test_vpdpbusd_is_there(runner):
    """In avxvnni, and only there: avx2 runs on processors that do not know it."""
    count = {tier: str(instructions(object_file(runner, tier))).count("vpdpbusd") for tier in ("avx2", "avxvnni")}
    assert count["avx2"] == 0
    assert count["avxvnni"] >= 4 + 8 + 12  # tiles of one, two and three rows


def test_its_instructions_are_recognised(runner):
    """The two tests above can fail: avx512 has what they look for."""
    found = instructions(object_file(runner, "avx512"))
    assert any(only_evex(code, text) for code, text in found)
    assert any("vpdpbusd" in text for _, text in found)


def test_emulated(runner):
    """The oracle's bits from the tier's own machine code; vpdpbusd is executed by a handler of illegal instructions."""
    object_file(runner, "avxvnni")
    options = ["--threads", "1", "--tiers", "avxvnni", "--emulate-avxvnni", "--every", str(EVERY)]
    done = harness.run([runner, harness.cases(), *options])
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert int(re.search(r"^avxvnni: (\d+) cases, 0 failed$", done.stdout, re.MULTILINE)[1]) > 90


def test_not_usable_without_the_instruction(runner):
    """Detection does not offer it to a processor that lacks it, and asking for it is refused by name."""
    if "avx_vnni" in Path("/proc/cpuinfo").read_text().split():
        pytest.skip("this processor has AVX-VNNI")
    done = harness.run([runner, harness.cases(), "--tiers", "avxvnni"])
    assert done.returncode == 2
    assert "avxvnni is not usable" in done.stderr
