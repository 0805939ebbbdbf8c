"""One output tile from several programs that each took a part of K: exact, in any order, with one launch.

Integer sums are exact however they are ordered, so the partial tiles are added with atomics into a workspace of zeros. Each program
then counts itself; the last one takes the total, leaves zeros behind for the next launch, and goes on to the epilogue. The
result depends neither on who is last nor on how many there were.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from soniq_kernels.triton_kernels.device_weights import DeviceWeights


@triton.jit
def add_and_count(acc, workspace, tile, tiles, programs, BN: tl.constexpr, BM: tl.constexpr):
    """Adds int32 [BN, BM] to tile `tile` of the workspace's `tiles`; true for the last of `programs` programs."""
    tl.atomic_add(_own(workspace, tile, BN, BM), acc, sem="relaxed")
    tl.debug_barrier()  # every thread has added before one of them counts
    return tl.atomic_add(_counter(workspace, tile, tiles, BN, BM), 1, sem="acq_rel") == programs - 1


@triton.jit
def take(workspace, tile, tiles, BN: tl.constexpr, BM: tl.constexpr):
    """The sum of all parts. Exchanged and not loaded: that reads behind the level 1 cache and leaves zeros."""
    acc = tl.atomic_xchg(_own(workspace, tile, BN, BM), tl.zeros((BN, BM), tl.int32), sem="relaxed")
    tl.atomic_xchg(_counter(workspace, tile, tiles, BN, BM), 0, sem="relaxed")
    return acc


@triton.jit
def _own(workspace, tile, BN: tl.constexpr, BM: tl.constexpr):
    return workspace + tile * (BN * BM) + tl.arange(0, BN)[:, None] * BM + tl.arange(0, BM)[None, :]


@triton.jit
def _counter(workspace, tile, tiles, BN: tl.constexpr, BM: tl.constexpr):
    return workspace + tiles * (BN * BM) + tile


def workspace(weights: DeviceWeights, tiles: int, tile_ints: int) -> torch.Tensor:
    """int32 zeros for so many tiles and their counters.

    Launches of one stream follow each other and share it. One that a CUDA graph records gets its own, which lives in the
    graph's memory: replays may overlap with other work.
    """
    size = tiles * (tile_ints + 1)
    if weights.device.type != "cuda":
        return torch.zeros(size, dtype=torch.int32)
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(size, dtype=torch.int32, device=weights.device)
    key = "workspace", torch.cuda.current_stream(weights.device).cuda_stream
    if key not in weights.cache or weights.cache[key].numel() < size:
        weights.cache[key] = torch.zeros(size, dtype=torch.int32, device=weights.device)
    return weights.cache[key]
