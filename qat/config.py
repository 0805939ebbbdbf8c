"""What the user decides before training starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ActivationGrid = Literal["auto", "bipolar", "unsigned"]
ActivationScale = Literal["static", "per_row"]


@dataclass(frozen=True)
class Config:
    """How `prepare` quantizes a network.

    palette       (low, high): the two precisions in bits a channel may have, 1 <= low <= high <= 8. Equal: a uniform network.
    target_bits   average bits of the weights of the learned layers (all but the first, the last and the excluded ones);
                  None: a quarter of the way from low to high.
    exclude       names (or fnmatch patterns) of layers that stay float32.
    first_bits, last_bits
                  precision of the first and the last layer in the order of execution; None: learned like the others.
    a_grid        "auto": unsigned where the layer's input is never negative on the example input, else bipolar.
    a_scale       "static": one learned scale of the layer's input; "per_row": each row (an image of a convolution) has the
                  scale of its largest value, found as it comes. Such an input arrives as float32, not as codes.
    fold_batch_norm
                  a BatchNorm that alone reads a layer's output becomes part of that layer's scale and bias.
    edge_bits     precision of residual sums' operands and of what average pools read, so that the packed network can keep
                  them as codes, where torch.fx can trace the model; None leaves them float32.

    Raises ValueError if a field does not make sense; a target outside the palette names the nearest possible one.
    """

    palette: tuple[int, int] = (2, 4)
    target_bits: float | None = None
    exclude: Sequence[str] = ()
    first_bits: int | None = 8
    last_bits: int | None = 8
    a_grid: ActivationGrid = "auto"
    a_scale: ActivationScale = "static"
    fold_batch_norm: bool = True
    edge_bits: int | None = 8

    def __post_init__(self) -> None:
        low, high = _palette(self.palette)
        object.__setattr__(self, "palette", (low, high))
        target = low + (high - low) / 4 if self.target_bits is None else float(self.target_bits)
        if not low <= target <= high:
            nearest = low if target < low else high
            raise ValueError(
                f"target_bits is {target:g}, outside the palette ({low}, {high}); "
                f"the nearest possible is {nearest}, or choose another palette"
            )
        object.__setattr__(self, "target_bits", target)
        for name in ("first_bits", "last_bits", "edge_bits"):
            if getattr(self, name) is not None:
                _width(name, getattr(self, name))
        if isinstance(self.exclude, str):
            raise TypeError(
                f"exclude is the string {self.exclude!r}, expected a list of names; write [{self.exclude!r}]"
            )
        if self.a_grid not in ("auto", "bipolar", "unsigned"):
            raise ValueError(f"a_grid is {self.a_grid!r}, expected 'auto', 'bipolar' or 'unsigned'")
        if self.a_scale not in ("static", "per_row"):
            raise ValueError(f"a_scale is {self.a_scale!r}, expected 'static' or 'per_row'")

    @classmethod
    def uniform(cls, bits: int, **fields) -> Config:
        """Every channel of every learned layer has `bits` bits: the baseline of a mixed network."""
        return cls(palette=(bits, bits), target_bits=bits, **fields)


def _palette(palette: object) -> tuple[int, int]:
    if not isinstance(palette, (tuple, list)) or len(palette) != 2:
        raise ValueError(f"palette is {palette!r}, expected two precisions, (low, high)")
    low, high = (_width("palette", bits) for bits in palette)
    if low > high:
        raise ValueError(f"palette is ({low}, {high}), expected the lower precision first: ({high}, {low})")
    return low, high


def _width(name: str, bits: object) -> int:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"{name} has {bits!r}, expected whole bits in 1..8")
    return bits
