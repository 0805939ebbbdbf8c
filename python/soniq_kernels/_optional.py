"""Optional packages: imported where they are used, with an error that says what to install."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or raise an ImportError that names the extra of soniq_kernels that brings it.

    >>> require("json", extra="torch").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # the package is there, something inside it is not: its own message says more
        raise ImportError(
            f"{error.name} is not installed and this part of soniq_kernels needs it; "
            f"run: pip install soniq_kernels[{extra}]",
            name=error.name,
        ) from error
