"""From torch's layout of a float tensor to that of codes, channels last, and back.

Functions of their own, so that a graph tells them from what a user's forward does.
"""

from __future__ import annotations

from torch import Tensor


def image_last(x: Tensor) -> Tensor:
    """NCHW to NHWC."""
    return x.permute(0, 2, 3, 1)


def image_first(x: Tensor) -> Tensor:
    """NHWC to NCHW."""
    return x.permute(0, 3, 1, 2)


def line_last(x: Tensor) -> Tensor:
    """NCL to NHWC of height 1."""
    return x.unsqueeze(2).permute(0, 2, 3, 1)


def line_first(x: Tensor) -> Tensor:
    """NHWC of height 1 to NCL."""
    return x.permute(0, 3, 1, 2).squeeze(2)


LAST = {"image": image_last, "line": line_last}
FIRST = {"image": image_first, "line": line_first}
CHANGES = (image_last, image_first, line_last, line_first)
