"""The kernels of avx512, avx512_vbmi and amx on processors that lack these: their intrinsics replaced by loops of ours.

tests/vectors/emulated/immintrin.h has the loops. What the compiler makes of the real intrinsics is not seen here, nor what it makes
of plain loops with 512 bits (kernels/elementwise.h): that takes a processor that has them.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from soniq_kernels import isa
from vectors import harness
from vectors.listing import instructions, object_file, only_evex

pytestmark = pytest.mark.sources

TIERS = ["avx512", "avx512_vbmi", "amx"]
PACKAGES = {"cmake": "cmake", "g++": "g++", "objdump": "binutils"}
VECTORS = Path(__file__).parent / "vectors"
AVX2 = ["-mavx2", "-mfma", "-mbmi2"]
PARTS = ["f", "bw", "dq", "vl", "vnni", "vbmi", "vbmi2", "vpopcntdq", "bitalg"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in PARTS)]
AMX = [*AVX512, "-mamx-tile", "-mamx-int8"]


@pytest.fixture(scope="module", autouse=True)
def tools():
    """Skips what this machine cannot build or run."""
    if platform.machine() != "x86_64" or "avx2" not in isa.available():
        pytest.skip("the emulation is made of AVX2")
    if reason := harness.missing(PACKAGES):
        pytest.skip(reason)


def options() -> list[str]:
    """What CMake is told."""
    return ["-DSONIQ_EMULATE_AVX512=ON", f"-DCMAKE_CXX_COMPILER={harness.tool('g++')}"]


@pytest.fixture(scope="module")
def runner():
    """The runner with emulated tiers; the loops are vectorised, the drivers less optimized than in the library."""
    optimize = ["-DCMAKE_CXX_FLAGS_RELEASE=-O1", "-DSONIQ_OPTIMIZE=-O2;-ftree-vectorize"]
    return harness.build("avx512-emulated", *options(), *optimize)


def check_all_cases(runner, *arguments: str) -> None:
    """All tiers give the oracle's bits in every case, and every kernel ran."""
    done = harness.run([runner, harness.cases(), "--tiers", ",".join(TIERS), *arguments])
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    counts = re.findall(r"^(\w+): (\d+) cases, (\d+) failed$", done.stdout, re.MULTILINE)
    assert [tier for tier, _, _ in counts] == TIERS, output
    assert all(int(cases) > 1000 and failed == "0" for _, cases, failed in counts), output


def test_every_case(runner):
    """The oracle's cases, and single kernels on operands that end where nobody may read on."""
    check_all_cases(runner, "--threads", "1")


def test_sanitizers(full):
    """The same under AddressSanitizer and UndefinedBehaviorSanitizer."""
    if not full:
        pytest.skip("takes minutes; --full")
    check_all_cases(harness.build_with_sanitizers("avx512-emulated-sanitizers", *options()), "--threads", "1")


@pytest.mark.parametrize("tier", TIERS)
def test_nothing_of_avx512_is_left(runner, tier):
    """No instruction of the real ones, nor of AMX, so that the machine that runs the tests does not matter."""
    found = instructions(object_file(runner, tier))
    assert len(found) > 1000, "the listing could not be read"
    assert not [text for code, text in found if only_evex(code, text) or re.match(r"tile|ldtile|tdp", text)]


def test_the_library_does_not_emulate():
    """The tiers are offered where the processor has the instructions, and nowhere else."""
    flags = Path("/proc/cpuinfo").read_text().split()
    assert ("avx512" in isa.available()) <= ("avx512_vnni" in flags)
    assert ("avx512_vbmi" in isa.available()) <= ("avx512_vpopcntdq" in flags)
    assert ("amx" in isa.available()) <= ("amx_int8" in flags)


# ---- the definitions -----------------------------------------------------------------------------------------------------


def compile_with(flags: list[str], source: Path, to: Path):
    """g++ with the options that kernels are compiled with; warnings are about the compiler's own header."""
    command = [harness.tool("g++"), "-std=c++17", "-O2", "-ffp-contract=off", "-w", *flags, source, "-o", to]
    return harness.run(command)


@pytest.mark.parametrize("flags", [AVX2, AVX512, AMX], ids=["avx2", "avx512", "amx"])
def test_definitions(tmp_path, flags):
    """Each does what the processor's instruction does, or what two instructions of AVX2 do on the halves."""
    done = compile_with([*flags, f"-I{VECTORS}"], VECTORS / "emulated" / "check.cpp", tmp_path / "check")
    assert done.returncode == 0, done.stderr[-4000:]
    needs = {"-mamx-int8": "amx", "-mavx512vbmi": "avx512_vbmi"}
    lacking = [tier for flag, tier in needs.items() if flag in flags and tier not in isa.available()]
    if lacking:
        pytest.skip(f"this processor has no {lacking[0]} to compare with; it was compiled, no more")
    done = harness.run([tmp_path / "check"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.match(r"(\d+) definitions", done.stdout)[1]) > 30


def test_every_definition_is_checked():
    """Each of the header's functions has its line in check.cpp."""
    defined = set(re.findall(r"^EMULATED \S+(?: \S+)? (_(?:mm512|tile)_\w+)\(", header(), re.MULTILINE))
    compared = set(re.findall(r"\b_(?:mm512|tile)_\w+", (VECTORS / "emulated" / "check.cpp").read_text()))
    assert len(defined) > 50
    assert not defined - compared


def header() -> str:
    """The definitions, as text."""
    return (VECTORS / "emulated" / "immintrin.h").read_text()


@pytest.mark.parametrize(
    ("expression", "compiles"),
    [
        ("_mm512_add_epi8(a, a)", True),
        ("_mm512_subs_epu8(a, a)", False),  # no kernel uses it
        ("_mm512_srav_epi16(_mm512_set1_epi8(1), a)", False),
        ("a + a", False),  # the compiler's vector type could do this with any instructions
    ],
)
def test_what_is_not_defined_does_not_compile(tmp_path, expression, compiles):
    """An intrinsic that the header lacks must not become the real one, which these processors refuse when it is too late."""
    source = tmp_path / "kernel.cpp"
    kernel = f"template <class T> T run(const T& a) {{ return {expression}; }}\ntemplate __m512i run(const __m512i&);"
    source.write_text(f"#include <immintrin.h>\nnamespace soniq {{\n{kernel}\n}}\n")
    done = compile_with([*AVX2, f"-I{VECTORS / 'emulated'}", "-c"], source, tmp_path / "kernel.o")
    assert (done.returncode == 0) is compiles, done.stderr
    assert compiles or "error" in done.stderr
