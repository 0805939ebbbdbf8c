"""Which instruction sets this machine has, and which one the kernels use.

The tiers are an ordered list, slowest first; "reference" (plain loops) is always there and the last usable one is the
default. `SONIQ_ISA=avx2` in the environment, or `isa.use("avx2")`, forces a tier for the whole process.
"""

from __future__ import annotations

import os

from soniq_kernels import _core

REFERENCE = "reference"


def built() -> list[str]:
    """Tiers in this build, slowest first; some may be more than this machine has."""
    return [name for name, _, _ in _core.tiers()]


def available() -> list[str]:
    """Tiers that this processor and operating system can run, slowest first."""
    return [name for name, _, usable in _core.tiers() if usable]


def active() -> str:
    """The tier that calls use now."""
    return _core.active_tier()


class use:
    """Forces a tier for the whole process, at once; as a context manager, until the end of the block.

    Args:
        name: one of `available()`.

    Raises:
        ValueError: a tier that is not built or that this machine lacks; the message lists what is there.
    """

    def __init__(self, name: str) -> None:
        _require_usable(name, "isa.use")
        self._previous = _core.active_tier()
        self.name = name
        _core.set_active_tier(name)

    def __enter__(self) -> use:
        return self

    def __exit__(self, *_: object) -> None:
        _core.set_active_tier(self._previous)

    def __repr__(self) -> str:
        return f"isa.use({self.name!r})"


def _require_usable(name: str, source: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{source} got {name!r}, expected the name of a tier: {', '.join(available())}")
    for tier, needs, usable in _core.tiers():
        if tier == name and usable:
            return
        if tier == name:
            raise ValueError(f"{source} got {name!r}, which needs {needs}; this machine has: {', '.join(available())}")
    raise ValueError(
        f"{source} got {name!r}, which is no tier of this build; this machine has: {', '.join(available())}"
    )


def _use_environment() -> None:
    name = os.environ.get("SONIQ_ISA")
    if name:
        _require_usable(name, "SONIQ_ISA")
        _core.set_active_tier(name)


_use_environment()
