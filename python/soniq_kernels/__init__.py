"""Fast and exact kernels for neural networks of 1 to 8 bits, mixed per input channel.

from soniq_kernels import packing, gemm, conv, isa
"""

from soniq_kernels import isa as _isa  # reads SONIQ_ISA: an unknown tier is an error before any kernel runs
from soniq_kernels._threads import get_num_threads, set_num_threads

__version__ = "0.1.0"
del _isa
__all__ = ["__version__", "get_num_threads", "load_network", "set_num_threads"]


def __getattr__(name: str) -> object:
    """load_network brings most of the package along, so it comes when it is asked for."""
    if name == "load_network":
        from soniq_kernels.network import load_network

        return load_network
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
