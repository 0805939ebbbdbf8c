"""Networks whose tensors stay codes from the first layer to the last, executed with NumPy alone. docs/network.md.

net = soniq_kernels.load_network("network.safetensors")
logits = net(images)                                  # float32 NHWC, or whatever layout the file says

net = network.Network(nodes, layers, tensors)         # by hand
net.save("network.safetensors")
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soniq_kernels import _arrays, _core, planner
from soniq_kernels._network_checks import ATTRIBUTES, LAYOUTS, OPS, check
from soniq_kernels._programs import Program, ceiling_of, kernels_of
from soniq_kernels.activations import Activations
from soniq_kernels.tensors import Codes
from soniq_kernels.weights import PackedWeights

__all__ = ["ATTRIBUTES", "LAYOUTS", "OPS", "Network", "Node", "Profile", "Row", "load_network"]

KEPT_PROGRAMS = 4  # shapes of input that stay ready
CLOCK_TURNS = 20_000  # of a loop of one cycle


@dataclass(frozen=True)
class Node:
    """One operation: it reads tensors and writes one or more, all from the same values.

    Attributes:
        op: a name of `network.OPS`.
        inputs, outputs: names of tensors.
        layer: the packed layer of a conv2d or linear.
        residual: a tensor that its epilogue adds.
        activation: None, "relu", "relu6" or ("hardtanh", low, high).
        kernel, stride, padding, dilation: as in conv.conv2d and ops.max_pool2d; None is their default.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layer: str | None = None
    residual: str | None = None
    activation: Any = None
    kernel: Any = None
    stride: Any = None
    padding: Any = None
    dilation: Any = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Every tensor that the node needs."""
        return self.inputs if self.residual is None else (*self.inputs, self.residual)

    def given(self, *names: str) -> dict[str, Any]:
        """Those attributes that are not None."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Row:
    """One node of a profile.

    Attributes:
        node, shape: and the shape of its first result. kernel: of its layer, "" where there is none.
        seconds, cycles: the medians of the runs, None without profile; cycles by the clock just before. products: multiplications of codes.
        ceiling: products a cycle that the inner loops of its kernels reach at most, on one thread; None where it is not known.
    """

    node: Node
    shape: tuple[int, ...]
    kernel: str
    products: int
    seconds: float | None
    cycles: float | None
    ceiling: float | None

    @property
    def rate(self) -> float | None:
        """Products a cycle."""
        return self.products / self.cycles if self.cycles and self.products else None

    @property
    def share(self) -> float | None:
        """Of the ceiling."""
        return self.rate / self.ceiling if self.rate and self.ceiling else None


@dataclass(frozen=True)
class Profile:
    """What a network runs, node by node. str() is a table.

    Attributes:
        rows: one a node. nbytes: of all tensors between nodes together.
    """

    rows: tuple[Row, ...]
    nbytes: int

    def __str__(self) -> str:
        timed = any(row.seconds is not None for row in self.rows)
        total = sum(row.seconds or 0 for row in self.rows)
        lines = [
            f"{len(self.rows)} nodes, {self.nbytes:,} bytes of tensors" + (f", {total * 1e3:.3f} ms" if timed else "")
        ]
        for row in self.rows:
            words = f"{row.node.op:16}{row.node.layer or '':24}{' x '.join(map(str, row.shape)):20}"
            if row.seconds is not None:
                words += f"{row.seconds * 1e6:9.1f} us{row.seconds / total:7.1%}"
                words += f"{row.rate:8.1f} MAC/cycle" if row.rate else " " * 18
                words += f"{row.share:6.0%} of {row.ceiling:3.0f}  " if row.share else " " * 14
            lines.append((words + row.kernel).rstrip())
        return "\n".join(lines)


class Network:
    """A list of nodes, the packed layers they use, and what each tensor between them is.

    Args:
        nodes: in the order of execution.
        layers: packed weights by name.
        tensors: by name, `tensors.Codes(plan, scale)` (or the pair) for codes, None for float32; of every tensor.
        inputs, outputs: names of tensors. An input that is codes takes uint8 in the original order of channels, such as images.
        layout: of the images that `run` takes and gives: "NHWC" or "NCHW"; "NCL" of lines, images of height 1.

    Raises:
        ValueError: what does not fit, and at which node.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        layers: Mapping[str, PackedWeights],
        tensors: Mapping[str, Codes | tuple[Any, Any] | None],
        inputs: Sequence[str] = ("x",),
        outputs: Sequence[str] = ("y",),
        layout: str = "NHWC",
    ) -> None:
        self.nodes = tuple(nodes)
        self.layers = dict(layers)
        self.tensors = {name: None if t is None else Codes(t[0], np.float32(t[1])) for name, t in tensors.items()}
        self.inputs, self.outputs, self.layout = tuple(inputs), tuple(outputs), layout
        check(self)
        self._programs: dict[Any, Program] = {}
        self._lock = threading.Lock()

    # ---- running ---------------------------------------------------------------------------------------------------
    def run(self, *x: Any) -> Any:
        """The outputs (one array, or a tuple if there are several) of the inputs.

        Args:
            x: one for each input: float32 images of the network's layout or rows; uint8 codes where the input is codes.

        Returns:
            float32, or uint8 codes in the original order of channels; images of the network's layout.

        Raises:
            ValueError: inputs of another number, shape or dtype; NaN or infinity in what becomes codes.
        """
        values = self._values(x)
        outputs = [self._leaving(y) for y in self._program(values).run(values)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    __call__ = run

    def explain(self, *x: Any, profile: bool = False, runs: int = 10) -> Profile:
        """Which kernel runs each node for such inputs; with `profile` also how long it takes, the median of `runs`."""
        values = self._values(x)
        program = self._program(values)
        times = [self._time(program, values) for _ in range(1 + runs)][1:] if profile else []
        medians = np.median(times, axis=0).tolist() if profile else [(None, None)] * len(program.steps)
        rows = [
            Row(step.node, step.shape, kernels_of(step), step.products, seconds, cycles, ceiling_of(step))
            for step, (seconds, cycles) in zip(program.steps, medians, strict=True)
        ]
        return Profile(tuple(rows), program.nbytes)

    def _time(self, program: Program, values: Sequence[Any]) -> list[tuple[float, float]]:
        """(seconds, cycles) of every step. The clock of a busy machine changes from one to the next."""
        times = []
        with program.entered(values):
            for step in program.steps:
                turn = min(_seconds(lambda: _core.spin(CLOCK_TURNS)) for _ in range(8)) / CLOCK_TURNS
                seconds = _seconds(step.run)
                times.append((seconds, seconds / turn))
        return times

    def _program(self, values: Sequence[Any]) -> Program:
        """The network made ready for these shapes on the active tier."""
        key = tuple(value.shape for value in values), _core.active_tier(), id(planner.settings)
        with self._lock:
            program = self._programs.pop(key, None) or Program(self, [value.shape for value in values])
            self._programs[key] = program  # the last one used is the last one to go
            while len(self._programs) > KEPT_PROGRAMS:
                del self._programs[next(iter(self._programs))]
        return program

    def _values(self, x: Sequence[Any]) -> list[Any]:
        if len(x) != len(self.inputs):
            raise ValueError(f"the network takes {len(self.inputs)} inputs {list(self.inputs)}, got {len(x)}")
        return [self._entering(name, one) for name, one in zip(self.inputs, x, strict=True)]

    def _entering(self, name: str, x: Any) -> Any:
        codes = self.tensors[name]
        if isinstance(x, Activations) and codes is not None:
            if not x.plan.same_activations(codes.plan) or x.scale.ndim or x.scale != codes.scale:
                raise ValueError(f"{name} is {x}, expected codes of {codes}")
            return x
        array = _arrays.as_numpy(x, name)
        if array.ndim == 0:
            raise ValueError(f"{name} has no axis; expected rows or images")
        if codes is None:
            array = _arrays.floats(array, name)
        if self.layout == "NCHW" and array.ndim == 4:
            array = array.transpose(0, 2, 3, 1)
        if self.layout == "NCL" and array.ndim == 3:
            array = array.transpose(0, 2, 1)[:, None]
        if codes is None:
            return array
        if not array.flags.c_contiguous:
            array = _arrays.fill(np.empty(array.shape, array.dtype), array)
        return Activations.from_codes(array, *codes)

    def _leaving(self, y: Any) -> NDArray[Any]:
        array = y.codes() if isinstance(y, Activations) else y
        if array.ndim != 4 or self.layout == "NHWC":
            return array
        array = array.transpose(0, 3, 1, 2)
        return array[:, :, 0] if self.layout == "NCL" else array

    # ---- GPUs ------------------------------------------------------------------------------------------------------
    def to(self, device: Any = "cuda") -> Any:
        """The network on a GPU, `triton_kernels.DeviceNetwork`, with the same bits; docs/gpu.md. Needs torch and triton."""
        from soniq_kernels.triton_kernels import DeviceNetwork

        return DeviceNetwork(self, device)

    # ---- files -----------------------------------------------------------------------------------------------------
    def save(self, path: str | Path) -> None:
        """Writes the network as one safetensors file that `load_network` reads. docs/format.md."""
        from soniq_kernels import _networks

        _networks.save_network(self, path)

    def __repr__(self) -> str:
        return (
            f"Network({len(self.nodes)} nodes, {len(self.layers)} layers, {list(self.inputs)} -> {list(self.outputs)})"
        )


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def load_network(path: str | Path) -> Network:
    """Reads a network that `Network.save` wrote.

    Raises:
        ValueError: what is wrong with the file, and at which node. OSError: the file cannot be read.
    """
    from soniq_kernels import _networks

    return _networks.load_network(path)
