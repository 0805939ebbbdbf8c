"""The compiled core: pointers and sizes, nothing is checked here. Private."""

def tiers() -> list[tuple[str, str, bool]]: ...
def active_tier() -> str: ...
def set_active_tier(name: str) -> None: ...
def cpu_name() -> str: ...
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

class Output:
    """Addresses of arrays that must outlive the call; 0 is null."""

    acc: int
    y: int
    codes: int
    activation_scale: int
    w_scale: int
    bias: int
    residual: int
    residual_codes: int
    residual_position: int
    residual_alpha: int
    residual_beta: int
    residual_factor: int
    post_scale: int
    post_bias: int
    r: int
    z: int
    cmax: int
    position: int
    rows_per_scale: int
    rows_per_residual_scale: int
    activation: int
    lo: float
    hi: float

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
        streams: list[int],
        tier: str,
    ) -> None: ...
    def run(self, codes: int, geometry: Geometry, output: Output) -> None: ...
    @property
    def kernels(self) -> list[tuple[str, str, str]]: ...
    @property
    def tier(self) -> str: ...
    @property
    def panel_bytes(self) -> int: ...
    @property
    def tile(self) -> tuple[int, int]: ...

def quantize(
    tier: str,
    x: int,
    rows: int,
    channels: int,
    original: int,
    segments: list[tuple[int, int, float, float, float]],
    scales: int,
    rows_per_scale: int,
    codes: int,
) -> bool: ...
def dynamic_scales(tier: str, x: int, groups: int, size: int, factor: float, scales: int) -> None: ...
def all_finite(tier: str, x: int, count: int) -> bool: ...
