"""`python -m benchmarks.without_amx COMMAND...`: a command in which nobody gets the matrix unit, as on processors without AMX.

    python -m benchmarks.without_amx python -m benchmarks.networks --batch 1 --out benchmarks/results/xeon_avx512

oneDNN can be told to leave AMX alone, OpenVINO and ONNX Runtime cannot. But every program has to ask Linux for the unit's registers
(arch_prctl, ARCH_REQ_XCOMP_PERM) before it uses them, and a seccomp filter answers that with "not permitted": all of them, and
this library, then take what they take on a processor with AVX-512 and VNNI alone. Tools that start Python with this filter say so by
REFUSED in their environment.
"""

from __future__ import annotations

import ctypes
import os
import sys

REFUSED = "SONIQ_BENCHMARKS_WITHOUT_AMX"
ARCH_PRCTL, REQUEST = 158, 0x1023  # of x86-64: the system call, and what AMX is asked for with
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2  # of prctl
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
NOT_PERMITTED, ALLOW = 0x0005_0000 | 1, 0x7FFF_0000
NUMBER, FIRST_ARGUMENT = 0, 16  # places in what a filter sees


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def refuse() -> None:
    """From now on this process, and all that it starts, asks for AMX in vain.

    Raises:
        OSError: the system does not take such a filter.
    """
    instructions = (_Instruction * 6)(
        _Instruction(LOAD, 0, 0, NUMBER), _Instruction(JUMP_IF_EQUAL, 0, 3, ARCH_PRCTL),
        _Instruction(LOAD, 0, 0, FIRST_ARGUMENT), _Instruction(JUMP_IF_EQUAL, 0, 1, REQUEST),
        _Instruction(RETURN, 0, 0, NOT_PERMITTED), _Instruction(RETURN, 0, 0, ALLOW),
    )  # fmt: skip
    program = _Program(len(instructions), instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((NO_NEW_PRIVILEGES, 1, 0, 0, 0), (SET_SECCOMP, FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*arguments) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"the system takes no filter that would refuse AMX: {os.strerror(error)}")
    os.environ[REFUSED] = "1"


def is_refused() -> bool:
    """Whether this process runs under `refuse`."""
    return REFUSED in os.environ


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("got no command, expected one: python -m benchmarks.without_amx python -m benchmarks.networks")
    refuse()
    os.execvp(sys.argv[1], sys.argv[1:])
