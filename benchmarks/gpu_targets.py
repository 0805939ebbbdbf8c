"""What the GPU kernels set out to reach on an H200 over cuBLAS FP16, and the verdict on a run."""

from __future__ import annotations

from typing import Any

N, K = 8192, 8192
GPU = "H200"
# {(batch, widths): (at least, aim)}; the better one of ours counts.
TARGETS = {
    **{(m, w): t for m in (1, 16) for w, t in {
        "W1A8": (5.0, 6.3), "W2A8": (3.6, 4.5), "W4A8": (2.4, 2.8), "W8A8": (1.5, 1.7), "W1A1": (5.0, 6.3), "W2A2": (3.6, 4.5),
    }.items()},
    **{(m, w): (1.4, 1.6) for m in (256, 4096) for w in ("W1A8", "W2A8", "W4A8", "W8A8")},
    (256, "W1A1"): (4.5, 6.0), (256, "W2A2"): (1.6, 2.1), (4096, "W1A1"): (5.0, 8.0), (4096, "W2A2"): (1.7, 2.2),
}  # fmt: skip


def judge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every target: what was to be reached, what was (None if it was not measured), and the verdict."""
    judged = []
    for (batch, widths), (least, aim) in TARGETS.items():
        shape = [batch, N, K]
        mine = [r for r in rows if r["shape"] == shape and r["widths"] == widths and r["ratio"]]
        best = max(mine, key=lambda r: float(r["ratio"]), default=None)
        judged.append({
            "shape": shape, "widths": widths, "by": best["name"] if best else "", "reached": best["ratio"] if best else None,
            "least": least, "aim": aim, "verdict": verdict(best["ratio"] if best else None, least),
        })  # fmt: skip
    return judged


def verdict(reached: float | None, least: float) -> str:
    """On the two decimals that pages print."""
    if reached is None:
        return "not measured"
    return "ok" if round(reached, 2) >= least else "missed"
