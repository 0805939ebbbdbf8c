"""Compiling GPU kernels for a GPU that is not there, and reading the machine code: for test_triton_machine_code.py, as a program.

Run without TRITON_INTERPRET. Arguments are bound as in a launch, with tensors of the CPU in the place of the GPU's.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def pretend(capability: int) -> None:
    """From here on Triton compiles for a GPU of this compute capability (90 for 9.0)."""
    target = GPUTarget("cuda", capability, 32)
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: capability,  # kernels are cached by device
            get_current_stream=lambda device: 0,
            get_current_target=lambda: target,
        )
    )


def machine_code(kernel) -> str:
    """The disassembly (SASS) of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-sass", "-res-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
