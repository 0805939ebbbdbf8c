"""The avxvnni tier on machines without AVX-VNNI: which instructions its object file has, and what they compute."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from vectors import harness
from vectors.listing import instructions, object_file, only_evex

pytestmark = pytest.mark.sources

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
