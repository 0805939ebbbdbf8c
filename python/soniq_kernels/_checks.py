"""What `soniq verify` checks of a packed layer: its sums against plain NumPy, its kernels against the reference tier.

Two questions, two independent answers. Is the integer result right? `expected_sums` knows the definition of a level and
nothing about packing, panels or instruction sets. Do all tiers of this machine return the same bits? Each one runs the same
inputs, and integers and float32 bit patterns are compared with ==.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from soniq_kernels import conv, gemm, isa
from soniq_kernels.packing import Activations, Grid, PackedWeights

# Random inputs; one of smallest and one of largest codes come on top.
ROWS, IMAGES = 15, 3


@dataclass(frozen=True)
class Check:
    """One cell of the table: a question, its answer, and where it failed."""

    name: str
    passed: bool
    detail: str = ""


def check_layer(packed: PackedWeights, seed: int = 0) -> list[Check]:
    """The checks of one layer, in the order of the table: "sums", then every usable tier but the reference."""
    x = random_activations(packed, np.random.default_rng(seed))
    with isa.use("reference"):
        integers, floats = run(x, packed)
    checks = [_compare("sums", "by NumPy", expected_sums(x, packed), "by the reference tier", integers)]
    for tier in isa.available()[1:]:  # "reference" is the first
        with isa.use(tier):
            tier_integers, tier_floats = run(x, packed)
        check = _compare(tier, "by the reference tier", integers, f"by {tier}", tier_integers)
        if check.passed:
            check = _compare(tier, "by the reference tier", floats, f"by {tier}", tier_floats)
        checks.append(check)
    return checks


def run(x: Activations, packed: PackedWeights) -> tuple[np.ndarray, np.ndarray]:
    """(int32 sums, float32 outputs) of one layer; a convolution is padded, so that every border class occurs."""
    if len(packed.shape) == 2:
        sums, outputs = gemm.matmul(x, packed), gemm.linear(x, packed)
    else:
        padding = _padding(packed)
        sums, outputs = conv.conv2d_int32(x, packed, padding=padding), conv.conv2d(x, packed, padding=padding)
    return sums, np.asarray(outputs)


def random_activations(packed: PackedWeights, rng: np.random.Generator) -> Activations:
    """Activations that fit the layer: all codes smallest, all codes largest, and random rows or small images."""
    plan = packed.plan
    if len(packed.shape) == 2:
        batch: tuple[int, ...] = (2 + ROWS,)
    else:
        _, kernel_h, kernel_w, _ = packed.shape
        batch = (2 + IMAGES, kernel_h + 1, kernel_w + 2)  # not square, so that height and width cannot be confused
    largest = np.array([segment.a.cmax for segment in plan.segments])[plan.segment_of()]
    codes = rng.integers(0, largest + 1, size=(*batch, plan.channels), dtype=np.int64)
    codes[0], codes[1] = 0, largest
    dynamic = packed.activation_scale is None or isinstance(packed.activation_scale, str)
    scale = 1.0 if dynamic else packed.activation_scale
    return Activations.from_codes(codes.astype(np.uint8), plan, scale)


def expected_sums(x: Activations, packed: PackedWeights) -> np.ndarray:
    """The integer result from its definition, int64: sum of 2^(e_s - E) * level_w * level_a over taps inside the input.

    float64 carries it: every partial sum is an integer below 2^53, so BLAS is exact in any order.
    """
    plan = packed.plan
    segment_of = plan.segment_of()
    units = np.array([2.0 ** (segment.w.exponent + segment.a.exponent - plan.exponent) for segment in plan.segments])
    a = _levels(x.codes(), segment_of, [segment.a for segment in plan.segments]) * units[segment_of]
    # Weights of group g meet the channels of group g: [groups, outputs of the group, taps..., channels of the group].
    codes = packed.codes().reshape(packed.groups, -1, *packed.shape[1:])
    groups = zip(codes, segment_of.reshape(packed.groups, -1), strict=True)
    w = np.stack([_levels(c, mine, [segment.w for segment in plan.segments]) for c, mine in groups])
    if len(packed.shape) == 2:
        return (a @ w[0].T).astype(np.int64)
    return _convolve(a, w, _padding(packed)).astype(np.int64)


def _convolve(a: np.ndarray, w: np.ndarray, padding: tuple[int, int]) -> np.ndarray:
    """Levels a [B, H, W, C] and w [groups, O/groups, kh, kw, C/groups] -> sums [B, H', W', O]; a padded tap is the number 0."""
    groups, outputs, kernel_h, kernel_w, channels = w.shape
    top, left = padding
    a = np.pad(a, ((0, 0), (top, top), (left, left), (0, 0)))
    batch, height, width, _ = a.shape
    out_h, out_w = height - kernel_h + 1, width - kernel_w + 1
    a = a.reshape(batch, height, width, groups, channels)
    sums = np.zeros((batch, out_h, out_w, groups, outputs))
    for i in range(kernel_h):
        for j in range(kernel_w):
            taps = a[:, i : i + out_h, j : j + out_w]
            sums += np.einsum("bhwgc,goc->bhwgo", taps, w[:, :, i, j], optimize=True)
    return sums.reshape(batch, out_h, out_w, groups * outputs)


def _padding(packed: PackedWeights) -> tuple[int, int]:
    return packed.shape[1] // 2, packed.shape[2] // 2


def _levels(codes: np.ndarray, segment_of: np.ndarray, grids: list[Grid]) -> np.ndarray:
    """Codes [..., channels] -> levels, float64; channel k is on grids[segment_of[k]]."""
    alpha, beta = np.array([(grid.alpha, grid.beta) for grid in grids], dtype=np.float64).T
    return codes * alpha[segment_of] + beta[segment_of]


def _compare(name: str, expected_by: str, expected: np.ndarray, got_by: str, got: np.ndarray) -> Check:
    """Equal shapes and equal bits, or the first place where they differ."""
    if expected.shape != got.shape:
        return Check(name, False, f"shape {expected.shape} {expected_by}, {got.shape} {got_by}")
    bits = np.uint32 if got.dtype == np.float32 else np.int64
    differ = np.argwhere(_bits(expected, bits) != _bits(got, bits))
    if not len(differ):
        return Check(name, True)
    first = tuple(int(i) for i in differ[0])
    return Check(
        name,
        False,
        f"{len(differ)} of {got.size} {got.dtype} outputs differ, the first at {first}: "
        f"{expected[first]} {expected_by}, {got[first]} {got_by}",
    )


def _bits(values: np.ndarray, bits: type) -> np.ndarray:
    return values.view(bits) if values.dtype == np.float32 else values.astype(bits)
