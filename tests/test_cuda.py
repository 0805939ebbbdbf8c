"""The CUDA sources as machine code, compiled without a GPU: the instructions that are meant, and none that would cost.

Compiled as CuPy does it (NVRTC, -ftz=true), or by nvcc, and read with the disassembler in Triton's wheel.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed; pip install soniq_kernels[gpu]")
triton = pytest.importorskip("triton", reason="triton is not installed; pip install soniq_kernels[gpu]")

from cuda_emulator import harness
from soniq_kernels.triton_kernels import b1, cuda

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MOST_SHARED = {80: 163 * 1024, 90: 232_448}
ARCHITECTURES = list(MOST_SHARED)
GEMV = {f"b1_gemv_{columns}": tiles * columns for columns, tiles in b1.GEMV_FORMS.items()}
GEMM = {f"b1_gemm_{planes}": 4 * (8 // planes * planes) for planes in range(1, 9)}


def nvcc(source: str, architecture: int, cubin: Path) -> None:
    """With the compiler on the path, under the flags that CuPy would give."""
    text = cubin.with_suffix(".cu")
    text.write_text(source)
    command = ["nvcc", *cuda.OPTIONS, f"-arch=sm_{architecture}", "-ftz=true", "-cubin", "-o", str(cubin), str(text)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def nvrtc(source: str, architecture: int, cubin: Path) -> None:
    """With the library that CuPy compiles with."""
    from cupy.cuda import nvrtc as library

    program = library.createProgram(source, "source.cu", [], [])
    try:
        library.compileProgram(program, (*cuda.OPTIONS, f"-arch=sm_{architecture}", "-ftz=true"))
    except library.NVRTCError:
        raise AssertionError(library.getProgramLog(program)[-4000:]) from None
    cubin.write_bytes(library.getCUBIN(program) + b"\0")  # CuPy strips what it takes for the end of a text


COMPILERS = {"nvcc": nvcc, "nvrtc": nvrtc}


def has_nvrtc() -> bool:
    """CuPy with a library that loads."""
    try:
        from cupy.cuda import nvrtc as library

        library.getVersion()
    except (ImportError, RuntimeError, OSError):
        return False
    return True


def usable() -> list[str]:
    """The compilers of this machine, the first of which the default suite takes."""
    return [name for name, there in (("nvcc", shutil.which("nvcc")), ("nvrtc", has_nvrtc())) if there]


def machine_code(name: str, architecture: int, compiler: str, source: str | None = None) -> str:
    """The disassembly with the use of resources, kept in .cache/cuda by what it was made from."""
    source = source or cuda.source(name)
    key = f"{source} {architecture} {compiler} {triton.__version__}"
    path = harness.CACHE / f"{name}-{architecture}-{compiler}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.sass"
    if not path.exists():
        harness.make_room(f"{name}-{architecture}-{compiler}-*")
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernels.cubin"
            COMPILERS[compiler](source, architecture, cubin)
            command = [str(TOOLS / "cuobjdump"), "-sass", "-res-usage", str(cubin)]
            path.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return path.read_text()


def kernels(listing: str) -> dict[str, list[str]]:
    """{kernel: its instructions, without predicates}."""
    found = {}
    for part in listing.split("Function : ")[1:]:
        found[part.split()[0]] = re.findall(
            r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", part, re.MULTILINE
        )
    return found


def resources(listing: str) -> dict[str, dict[str, int]]:
    """{kernel: {REG, STACK, SHARED, LOCAL}}."""
    found = re.findall(r"Function (\w+):\s*\n\s*(REG:.*)", listing)
    return {name: {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", line)} for name, line in found}


@pytest.fixture(params=ARCHITECTURES, ids=lambda a: f"sm_{a}")
def architecture(request):
    """Ampere and Hopper."""
    return request.param


@pytest.fixture
def listings(architecture, full):
    """{source: its disassembly} by each compiler; one of them by default."""
    names = usable()
    if not names:
        pytest.skip("no CUDA compiler: neither nvcc nor CuPy's NVRTC; pip install cupy-cuda13x nvidia-cuda-nvrtc")
    return [
        {name: machine_code(name, architecture, c) for name in cuda.SOURCES} for c in (names if full else names[:1])
    ]


def test_products(listings):
    """One-bit matrix instructions that are not emulated, all of them, fed by 16-byte loads; nothing spilled or fused."""
    for listing in listings:
        check_products(listing["b1.cu"])


def check_products(listing: str) -> None:
    """Of every kernel of b1.cu."""
    found, used = kernels(listing), resources(listing)
    assert set(found) == set(used) == GEMV.keys() | GEMM.keys()
    for name, instructions in found.items():
        count = Counter(instructions)
        products = [i for i in count if "MMA" in i]
        assert products == ["BMMA.168256.AND.POPC"], (name, products)
        steps = 2 * (GEMV | GEMM)[name]  # instructions for a block of 512 channels
        assert count[products[0]] % steps == 0 and count[products[0]] >= steps, (name, count[products[0]])
        assert used[name]["STACK"] == used[name]["LOCAL"] == 0, (name, used[name])
        assert not [i for i in count if i.startswith(("LDL", "STL", "FFMA"))], name
        wide = [i for i in count if "128" in i and i.startswith("LDG")]
        assert any("CONSTANT" in i for i in wide) if name in GEMV else any(i.startswith("LDGSTS") for i in wide), (
            name,
            wide,
        )
        assert not [i for i in count if ".FTZ" in i and i.startswith(("FADD", "FMUL", "FSETP", "FSEL", "FMNMX"))], name


def test_weights_stay_out_of_the_first_cache(listings):
    """gemv reads its weights past L1, sixteen bytes a lane."""
    for listing in listings:
        found = kernels(listing["b1.cu"])
        for instructions in (found[name] for name in GEMV):
            assert any(i.startswith("LDG.E.NA") and "128" in i for i in instructions)


def test_registers_let_blocks_share_a_processor(listings):
    """Two blocks of a gemm, three of the smaller gemv: of 65536 registers."""
    for listing in listings:
        for name, resource in resources(listing["b1.cu"]).items():
            threads, blocks = (128, 2) if name in GEMM else (256, 3 if name in ("b1_gemv_1", "b1_gemv_2") else 1)
            assert blocks * threads * -(-resource["REG"] // 8) * 8 <= 65536, (name, resource)


def test_planes(listings):
    """A ballot a plane and word, no spills; the only fused products are those inside one exact division."""
    for listing in listings:
        check_planes(listing["cuda_planes.cu"])


def check_planes(listing: str) -> None:
    """Of the quantizer."""
    count = Counter(kernels(listing)["write_planes"])
    assert sum(n for i, n in count.items() if i.startswith("VOTE")) >= 16
    assert any(i.startswith("STG.E.128") for i in count)
    assert resources(listing)["write_planes"]["STACK"] == 0
    assert not [i for i in count if i.startswith(("LDL", "STL"))]
    assert sum(n for i, n in count.items() if i.startswith("FFMA")) < 24


def test_rates_of_the_benchmark(architecture, full, monkeypatch):
    """The loops that measure ceilings hold the instructions that they count, eight a turn."""
    monkeypatch.syspath_prepend(harness.REPOSITORY)
    from benchmarks import gpu_ceilings

    if not usable():
        pytest.skip("no CUDA compiler")
    listing = machine_code("gpu_rates.cu", architecture, usable()[0], gpu_ceilings.source())
    for name, instruction in (("b1_rate", "BMMA.168256.AND.POPC"), ("dp4a_rate", "IDP.4A.S8.S8")):
        count = Counter(kernels(listing)[name])
        assert count[instruction] % 8 == 0 and count[instruction] >= 8, (name, count)
        assert resources(listing)[name]["STACK"] == 0


def test_the_reader_sees_a_spill_and_a_fused_product():
    """The patterns above match what a bad kernel would hold."""
    listing = """
 Function b1_gemv_1:
  REG:255 STACK:16 SHARED:0 LOCAL:16 CONSTANT[0]:864
\t\tFunction : b1_gemv_1
        /*0000*/                   LDL R1, [R1] ;
        /*0010*/              @!P0 FFMA R1, R2, R3, R4 ;
"""
    assert kernels(listing) == {"b1_gemv_1": ["LDL", "FFMA"]}
    assert resources(listing)["b1_gemv_1"]["STACK"] == 16


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 16, 64, 65, 256, 4096])
def test_shared_memory_fits(rows):
    """Every launch that is ever chosen asks for less than the smallest of these GPUs has."""
    for planes in range(1, 9):
        segment = b1.SegmentPanel(8, planes, 8192, 16, 0, 0, 0)
        panels = b1.Panels(None, (segment,), None, 8192)
        for form in ("gemv", "gemm"):
            launch = b1.choose(panels, rows, 132, form)
            assert launch.shared <= min(MOST_SHARED.values()), launch
            assert launch.shared * 2 <= MOST_SHARED[90] or form == "gemv", launch
            assert max(launch.grid[1:]) <= 65535


def test_sources_are_whole():
    """One text a source, its headers in it once: CuPy caches by the text."""
    for name in cuda.SOURCES:
        text = cuda.source(name)
        assert '#include "cuda_' not in text and text.count("quantize_one(float x") == 1


def test_refusals():
    """Which GPUs do not run these kernels, and why."""
    assert cuda.refusal((8, 0)) is None and cuda.refusal((9, 0)) is None
    assert "need 8.0 or higher" in cuda.refusal((7, 5))
    assert "emulate one-bit products" in cuda.refusal((10, 0))


def test_without_a_gpu():
    """The error is CuPy's own or names the extra; it comes when a device is asked for, not at import."""
    try:
        import cupy
    except ImportError:
        with pytest.raises(ImportError, match=r"pip install soniq_kernels\[gpu\]"):
            cuda.CudaDevice()
        return
    try:
        if cupy.cuda.runtime.getDeviceCount():
            pytest.skip("there is a GPU")
    except cupy.cuda.runtime.CUDARuntimeError:
        pass
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        cuda.CudaDevice()
