"""What an import brings along: numpy and safetensors, nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OPTIONAL = ("torch", "triton", "cupy", "matplotlib", "rich", "sklearn")


def run_python(code: str, **options) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.mark.parametrize(
    "modules", ["soniq_kernels", "soniq_kernels.packing, soniq_kernels.gemm, soniq_kernels.conv, soniq_kernels.isa"]
)
def test_imports_no_optional_package(modules):
    """Neither torch nor triton nor cupy is loaded, whether installed or not."""
    done = run_python(f"import {modules}, sys; print([name for name in {OPTIONAL} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_works_without_optional_packages():
    """A layer runs where importing any of them is impossible."""
    code = f"""
import sys
for name in {OPTIONAL}:
    sys.modules[name] = None
import numpy as np
from soniq_kernels import gemm, packing
plan = packing.Plan.uniform(3, w_bits=1, a_bits=8)
packed = packing.pack(np.ones((2, 3), np.uint8), plan, np.ones(2, np.float32), activation_scale="per_row")
print(gemm.linear(np.ones((1, 3), np.float32), packed).shape)
"""
    done = run_python(code)
    assert done.stdout.strip() == "(1, 2)", done.stderr


def test_prints_nothing():
    """A library does not talk."""
    done = run_python("import soniq_kernels.gemm, soniq_kernels.conv")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_triton_kernels_is_not_importable_at_top_level():
    """It is another project's name: from the repository root ours must not answer to it."""
    code = "import triton_kernels as ours; print(ours.__file__ or ours.__path__)"
    done = run_python(f"import sys; sys.path.insert(0, ''); {code}", cwd=ROOT)
    assert done.returncode != 0 or str(ROOT / "triton_kernels") not in done.stdout
    assert done.returncode == 0 or "ImportError" in done.stderr or "ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize("missing", ["torch", "triton"])
def test_gpu_kernels_name_the_extra_that_they_need(missing):
    """A layer on a GPU without torch or triton says what to install."""
    done = run_python(f"import sys; sys.modules[{missing!r}] = None; from soniq_kernels.triton_kernels import linear")
    assert f"ImportError: {missing} is not installed" in done.stderr and "soniq_kernels[gpu]" in done.stderr


def test_one_bit_kernels_need_neither_torch_nor_triton():
    """The layer in CUDA sources and its device import alone; a device asks for CuPy, by the name of the extra."""
    code = """
import sys
for name in ("torch", "triton", "cupy"):
    sys.modules[name] = None
from soniq_kernels.triton_kernels import b1, cuda
print(b1.Linear.__name__, all("write_planes" in cuda.source(n) or "b1_gemm" in cuda.source(n) for n in cuda.SOURCES))
cuda.CudaDevice()
"""
    done = run_python(code)
    assert done.stdout.split() == ["Linear", "True"], done.stderr
    assert "ImportError: cupy is not installed" in done.stderr and "soniq_kernels[gpu]" in done.stderr


def test_gpu_kernels_start_no_cuda():
    """A CUDA context in the parent would break every forked child."""
    pytest.importorskip("triton")
    code = "import soniq_kernels.triton_kernels.torch_cuda, torch, sys; print(torch.cuda.is_initialized(), 'cupy' in sys.modules)"
    assert run_python(code).stdout.split() == ["False", "False"]


def test_version_is_that_of_the_distribution():
    """soniq_kernels.__version__ is what pip shows."""
    done = run_python(
        "import soniq_kernels, importlib.metadata as m; print(soniq_kernels.__version__ == m.version('soniq_kernels'))"
    )
    assert done.stdout.strip() == "True", done.stderr
