"""How many threads the kernels use. Results are the same for any number."""

from __future__ import annotations

from soniq_kernels import _arrays, _core


def get_num_threads() -> int:
    """Threads a call may use: OMP_NUM_THREADS, else the cores this process may run on; 1 in a forked child."""
    return _core.get_num_threads()


def set_num_threads(threads: int) -> None:
    """Sets the threads of later calls, for the whole process.

    Raises:
        ValueError: less than 1 or more than 1024.
    """
    _core.set_num_threads(_arrays.integer(threads, "threads", 1, 1024))
