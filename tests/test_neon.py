"""The NEON tiers on emulated processors: cross-compiled, checked against the oracle's vectors without Python."""

from __future__ import annotations

import os
import re

import pytest

from vectors import harness

pytestmark = pytest.mark.sources

PACKAGES = {
    "cmake": "cmake",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "qemu-aarch64-static": "qemu-user-static",
}
BEST_TIER = {"cortex-a53": "neon", "cortex-a76": "neon_dotprod", "max": "neon_i8mm"}
NEON_TIERS = list(BEST_TIER.values())


@pytest.fixture(scope="module")
def runner():
    """The runner for AArch64, linked statically so that the emulator needs no libraries of the target."""
    if reason := harness.missing(PACKAGES):
        (pytest.fail if os.environ.get("CI") or os.environ.get("SONIQ_REQUIRE_NEON") else pytest.skip)(reason)
    compiler = harness.tool("aarch64-linux-gnu-g++")
    openmp = harness.run([compiler, "-print-file-name=libgomp.a"]).stdout.strip()
    return harness.build(
        "aarch64",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={compiler}",
        f"-DOpenMP_gomp_LIBRARY={openmp}",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    )


def emulate(runner, cpu: str, *arguments: str):
    """Run all cases on one emulated processor."""
    return harness.run([harness.tool("qemu-aarch64-static"), "-cpu", cpu, runner, harness.cases(), *arguments])


def tiers_without_failures(done) -> list[str]:
    """The tiers that the runner reports, none of them with a difference; the whole output otherwise."""
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    counts = re.findall(r"^(\w+): (\d+) cases, (\d+) failed$", done.stdout, re.MULTILINE)
    assert all(int(cases) > 1000 and failed == "0" for _, cases, failed in counts), output
    return [tier for tier, _, _ in counts]


@pytest.mark.parametrize("cpu", BEST_TIER)
def test_every_tier(runner, cpu):
    """Detection picks the processor's best tier; it and all below it give the oracle's bits, and every kernel ran."""
    done = emulate(runner, cpu, "--threads", "1")
    usable = NEON_TIERS[: NEON_TIERS.index(BEST_TIER[cpu]) + 1]
    assert tiers_without_failures(done) == ["reference", *usable]
    assert f"best tier: {BEST_TIER[cpu]}\n" in done.stdout


@pytest.mark.parametrize("cpu", BEST_TIER)
def test_two_threads(runner, cpu):
    """The same bits from two threads, called from one that flushes denormals."""
    done = emulate(runner, cpu, "--threads", "2", "--tiers", "best", "--flush-denormals")
    assert tiers_without_failures(done) == [BEST_TIER[cpu]]


def test_a_tier_that_the_processor_lacks(runner):
    """Forcing it is refused by name; nothing is executed."""
    done = emulate(runner, "cortex-a53", "--tiers", "neon_dotprod")
    assert done.returncode == 2
    assert "neon_dotprod is not usable" in done.stderr
