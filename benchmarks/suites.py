"""What each suite runs: shapes, contenders, threads, and whether each contender has a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks import shapes
from benchmarks.contenders import Contender
from benchmarks.peers import TABLES
from benchmarks.probes import usable_cores
from benchmarks.shapes import Shape
from soniq_kernels import _core, isa

IN_TURN = (
    "Everybody takes turns, in another order every round, so that a machine whose speed drifts slows all of them; figures are "
    "medians."
)
SECOND = " A turn is two calls and the second one counts: what fits in the caches is there, as in a loop over batches."
FIRST = " A turn is one call, which finds in the caches what all the others left there: weights and activations come from memory."
IN_BLOCKS = (
    "Every contender has a process of its own, where threads rest between calls (OMP_WAIT_POLICY=passive); processes take "
    "turns of four calls, the first of which does not count; figures are medians."
)
IN_CACHE = " At 1 x 4096 x 4096 a turn is fifteen calls of which five count: so many pass until the weights lie in L3."


def _turns(before: int, counted: int) -> Callable[[Shape], tuple[int, int]]:
    """Turns of so many calls to warm up and so many that count; of more where an L3 of 32 MB is meant to hold the weights."""
    return lambda shape: (10, 5) if shape[0] == 1 and shape[1] * shape[2] <= 2**25 else (before, counted)


@dataclass(frozen=True)
class Suite:
    """One results file."""

    name: str
    title: str
    about: str
    shapes: list[Shape]
    peers: list[tuple[str, str]]  # (kind, name)
    ours: Callable[[Shape], list[tuple[str, str]]]  # (widths, tier); a call, since the active tier is known at run time
    threads: Callable[[], list[int]] = lambda: [1]
    turn: Callable[[Shape], tuple[int, int]] = lambda _: (0, 1)  # calls of a turn that do not count, then those that do
    processes: bool = False
    environment: dict[str, str] = field(default_factory=dict)  # of the peers' processes

    def contenders(self, shape: Shape) -> Iterator[Contender]:
        """Ours first: they need most memory while they are made."""
        for threads in self.threads():
            yield from (Contender("ours", widths, tier, threads) for widths, tier in self.ours(shape))
            yield from (Contender(kind, name, "", threads) for kind, name in self.peers if self._fits(kind, shape))

    def _fits(self, kind: str, shape: Shape) -> bool:
        """Floats of the largest matrix, in a process for every peer and number of threads, are more than 24 GiB."""
        return not (self.processes and kind == "float" and shape[1] * shape[2] > 2**28)


def _peers(*kinds: str) -> list[tuple[str, str]]:
    return [(kind, name) for kind in kinds for name in TABLES[kind]]


def _on_active_tier(widths: list[str]) -> Callable[[Shape], list[tuple[str, str]]]:
    return lambda _: [(w, isa.active()) for w in widths]


def _for_rows(shape: Shape) -> list[tuple[str, str]]:
    """On the active tier, the widths that the targets name for one row or for many."""
    return [(w, isa.active()) for w in (shapes.GEMV_WIDTHS if shape[0] == 1 else shapes.WIDTHS)]


def _on_all_tiers(shape: Shape) -> list[tuple[str, str]]:
    """All widths on the active tier, a few on the others whose kernels differ."""
    counts = _core.kernel_counts()
    others = [t for t in isa.available() if any(k.startswith(f"{t}.") and ".tile" in k for k in counts)]
    few = [(w, tier) for tier in others if tier != isa.active() for w in shapes.FEW_WIDTHS]
    return [*_for_rows(shape), *few]


def _one_and_all() -> list[int]:
    """One thread, two where there are two cores, and all."""
    return sorted({1, min(2, usable_cores()), usable_cores()})


def _network_shapes() -> list[Shape]:
    return list(dict.fromkeys(layer.shape for layers in shapes.NETWORKS.values() for layer in layers))


def _held(name: str, title: str, tier: str, how: str, environment: dict[str, str]) -> Suite:
    """Ours on a tier that is not the best one, beside what can be held to its instructions."""
    about = IN_BLOCKS + how + " OpenVINO, ONNX Runtime and FBGEMM know no such limit." + IN_CACHE
    return Suite(
        name, title, about, [*shapes.GEMM, shapes.GEMV[1]], [("int8", "oneDNN (torch)"), ("float", "FP32 (torch)")],
        lambda _: [(w, tier) for w in shapes.WIDTHS], turn=_turns(1, 3), processes=True, environment=environment,
    )  # fmt: skip


SUITES = {
    suite.name: suite
    for suite in [
        Suite(
            "gemm", "Linear layers beside INT8, one thread", IN_TURN + SECOND,
            shapes.GEMM, _peers("int8", "float"), _on_all_tiers, turn=_turns(1, 1),
        ),
        Suite(
            "cold", "Linear layers that find nothing in the caches, one thread", IN_TURN + FIRST,
            shapes.GEMM, _peers("int8"), _for_rows,
        ),
        Suite(
            "gemv", "One row beside INT8, one thread",
            IN_TURN + SECOND + IN_CACHE,
            shapes.GEMV, _peers("int8", "float"), _on_active_tier(shapes.GEMV_WIDTHS), turn=_turns(1, 1),
        ),
        Suite(
            "networks", "Layers of whole networks beside INT8, one thread",
            IN_TURN + FIRST + " A network is the sum of its layers; the best INT8 is that of each layer. What lies between layers is left out.",
            _network_shapes(), _peers("int8", "float"), _on_active_tier(shapes.NETWORK_WIDTHS),
        ),
        _held(
            "avx2", "AVX2 alone: ours beside INT8 of oneDNN, one thread", "avx2",
            " oneDNN and torch are held to AVX2 by ONEDNN_MAX_CPU_ISA and ATEN_CPU_CAPABILITY, set before they load.",
            {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        ),
        _held(
            "avx512", "AVX-512 alone: ours beside INT8 of oneDNN, one thread", "avx512_vbmi",
            " oneDNN is held to AVX-512 with VNNI by ONEDNN_MAX_CPU_ISA, set before it loads, where the processor has AMX.",
            {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
        ),
        Suite(
            "threads", "One thread and all threads", IN_BLOCKS + IN_CACHE,
            [*shapes.GEMM, *shapes.GEMV], _peers("int8", "float"), _for_rows, _one_and_all,
            turn=_turns(1, 3), processes=True,
        ),
        Suite(
            "lowbit", "Beside the low-bit kernels of others, one thread",
            IN_TURN + FIRST + " Low-bit peers have a scale for every block of K, ours one for every output." + IN_CACHE,
            [*shapes.GEMM, shapes.GEMV[1]], _peers("int8", "lowbit"), _on_active_tier(shapes.LOWBIT_WIDTHS), turn=_turns(0, 1),
        ),
    ]
}  # fmt: skip
DEFAULT = ["gemm", "gemv"]
