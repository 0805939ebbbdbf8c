"""The compiled core: arrays and sizes, nothing is checked here. Private."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def tiers() -> list[tuple[str, str, bool]]: ...
def active_tier() -> str: ...
def set_active_tier(name: str) -> None: ...
def candidates(tier: str, w_bits: int, a_bits: int) -> list[tuple[str, str, int, float]]: ...
def cpu_name() -> str: ...
def spin(turns: int) -> None: ...
def kernel_counts() -> dict[str, int]: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def set_work_per_thread(work: int) -> None: ...

class Geometry:
    batch: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int
    dilation_h: int
    dilation_w: int

_ChannelGrid = tuple[float, float, float, float, float, float]

class TensorFormat:
    """Where channels are stored, what their codes mean, how floats become them."""

    def __init__(
        self,
        segment_of: list[int],
        grids: Sequence[_ChannelGrid],
        scale: float,
        joined: tuple[float, float, Sequence[float], Sequence[int], Sequence[int]] = ...,
    ) -> None: ...

class CodesIn:
    """Codes to read; keeps its arrays alive, a copy in another object does not."""

    def __init__(
        self, codes: NDArray[Any], format: TensorFormat, scales: NDArray[Any], rows_per_scale: int
    ) -> None: ...

class Results:
    """Where values go, as float32 (None: nowhere) and as codes; keeps its arrays alive as CodesIn does."""

    def __init__(self, y: NDArray[Any] | None, sinks: list[tuple[NDArray[Any], TensorFormat]]) -> None: ...

class Output:
    """Where results go and what happens to them. Arrays must outlive the call; None is none."""

    def __init__(self, other: Output = ...) -> None: ...
    acc: NDArray[Any] | None
    results: Results
    activation_scale: NDArray[Any] | None
    w_scale: NDArray[Any] | None
    bias: NDArray[Any] | None
    residual: NDArray[Any] | None
    residual_codes: CodesIn
    post_scale: NDArray[Any] | None
    post_bias: NDArray[Any] | None
    unit: float
    rows_per_scale: int
    activation: int
    lo: float
    hi: float
    pooling: PoolTask  # of codes: only what it leaves is written

class CombineTask:
    rows: int
    channels: int
    a: CodesIn
    b: CodesIn
    x: NDArray[Any] | None
    activation: int
    lo: float
    hi: float
    results: Results
    first: int
    result_channels: int

class PoolTask:
    geometry: Geometry
    kernel_h: int
    kernel_w: int
    channels: int

class Quantizer:
    def __init__(
        self, channels: int, original: list[int], segments: list[tuple[int, int, float, float, float]]
    ) -> None: ...

_Grid = tuple[int, int, int, int]

class Layer:
    def __init__(
        self,
        outputs: int,
        groups: int,
        kernel_h: int,
        kernel_w: int,
        channels: int,
        segments: list[tuple[_Grid, _Grid, list[int]]],
        streams: list[NDArray[np.uint8]],
        tier: str,
        families: list[str] = ...,
        share_pixels: bool = ...,
        joins: list[tuple[int, int, int, int]] = ...,
    ) -> None: ...
    def run(self, codes: NDArray[np.uint8], geometry: Geometry, output: Output) -> None: ...
    def takes_winograd(self, geometry: Geometry) -> bool: ...
    def run_floats(
        self,
        quantizer: Quantizer,
        x: NDArray[np.float32],
        scales: NDArray[np.float32],
        geometry: Geometry,
        output: Output,
    ) -> bool: ...
    @property
    def kernels(self) -> list[tuple[str, str, str]]: ...
    @property
    def tier(self) -> str: ...
    @property
    def panel_bytes(self) -> int: ...
    @property
    def tile(self) -> tuple[int, int]: ...

def quantize(
    tier: str, quantizer: Quantizer, x: NDArray[np.float32], scales: NDArray[np.float32], codes: NDArray[np.uint8]
) -> bool: ...
def dynamic_scales(
    tier: str, x: NDArray[np.float32], groups: int, factor: float, scales: NDArray[np.float32]
) -> None: ...
def all_finite(tier: str, x: NDArray[np.float32]) -> bool: ...
def combine(tier: str, task: CombineTask) -> None: ...
def max_pool(tier: str, task: PoolTask, codes: NDArray[Any], out: NDArray[Any]) -> None: ...
def avg_pool(tier: str, task: PoolTask, x: CodesIn, results: Results) -> None: ...
