"""What the user decides before training starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

ActivationGrid = Literal["auto", "bipolar", "unsigned"]
ActivationScale = Literal["static", "per_row"]
WeightGrid = Literal["bipolar", "ternary"]
WeightScale = Literal["learned", "absmean", "absmedian"]
Surrogate = Literal["clipped", "identity", "tanh"]

AUTO = "auto"
CHOICES = {
    "a_grid": get_args(ActivationGrid),
    "a_scale": get_args(ActivationScale),
    "w_grid": get_args(WeightGrid),
    "w_scale": get_args(WeightScale),
    "surrogate": get_args(Surrogate),
}
TARGETS = ("target_bits", "target_bytes", "target_compression", "target_time")


@dataclass(frozen=True)
class Config:
    """How `prepare` quantizes a network.

    palette       (low, high): the two precisions in bits a channel may have, 1 <= low <= high <= 8. Equal: a uniform network.
                  "auto": channels learn anything from 1 to 8 bits, and `freeze` searches for the two levels.
    a_palette     (low, high) of the activations, where they shall have other precisions than the weights; a channel has the
                  low level of both or the high level of both.
    target_bits   average bits of the weights of the learned layers (all but the first, the last and the excluded ones);
                  None: a quarter of the way from low to high, if no other target is given.
    target_bytes  of all tensors of the packed network, what stays float included.
    target_compression
                  bytes of the float model's state_dict over that.
    target_time   time of the learned layers' products over their time at 8 bits, by the table of this machine (`soniq
                  calibrate`); `bit_penalty` and `freeze` then count time.
    least_share   of the channels that each of two levels holds at least, 0 to 0.5; a target at one level is a uniform network.
    exclude       names (or fnmatch patterns) of layers that stay float32.
    first_bits, last_bits
                  precision of the first and the last layer in the order of execution; None: learned like the others.
    a_grid        "auto": unsigned where the layer's input is never negative on the example input, else bipolar.
    a_scale       "static": one learned scale of the layer's input; "per_row": each row (an image of a convolution) has the
                  scale of its largest value, found as it comes. Such an input arrives as float32, not as codes.
    fold_batch_norm
                  a BatchNorm that alone reads a layer's output becomes part of that layer's scale and bias.
    w_grid        "ternary": the weights of the learned layers are -1, 0 or 1 times the scale of their output (2 bits stored);
                  with `Config.uniform(2, ...)` only.
    w_scale       "learned"; for ternary and one-bit weights also "absmean" or "absmedian": the mean or the median of an output's
                  weights as they are, without a gradient.
    surrogate     how gradients pass the rounding in the exact phase: "clipped" straight through inside the range; "identity"
                  for weights straight through everywhere; "tanh" for weights and bipolar activations with the slope of a tanh.
    nested_bits   lower widths that the weights of the learned layers shall be readable at too, from the same file: 1 to one
                  less than the high level. docs/any_bits.md.
    embedding_bits
                  precision of the rows of every nn.Embedding; None leaves them float32. They do not count towards a target.
    edge_bits     precision of residual sums' operands and of what average pools read, so that the packed network can keep
                  them as codes, where torch.fx can trace the model; None leaves them float32.

    Raises ValueError if a field does not make sense; a target outside the palette names the nearest possible one.
    """

    palette: tuple[int, int] | Literal["auto"] = (2, 4)
    a_palette: tuple[int, int] | None = None
    target_bits: float | None = None
    target_bytes: float | None = None
    target_compression: float | None = None
    target_time: float | None = None
    least_share: float = 0.1
    exclude: Sequence[str] = ()
    first_bits: int | None = 8
    last_bits: int | None = 8
    a_grid: ActivationGrid = "auto"
    a_scale: ActivationScale = "static"
    fold_batch_norm: bool = True
    w_grid: WeightGrid = "bipolar"
    w_scale: WeightScale = "learned"
    surrogate: Surrogate = "clipped"
    nested_bits: Sequence[int] = ()
    embedding_bits: int | None = None
    edge_bits: int | None = 8

    def __post_init__(self) -> None:
        if self.palette != AUTO:
            object.__setattr__(self, "palette", _palette("palette", self.palette))
        low, high = self.levels
        if self.a_palette is not None:
            object.__setattr__(self, "a_palette", a_palette := _palette("a_palette", self.a_palette))
            if low == high and a_palette[0] < a_palette[1]:
                raise ValueError(
                    f"a_palette is {a_palette} and palette {(low, high)}, expected two levels of the weights too: "
                    "a channel has the low level of both or the high level of both"
                )
        self._check_targets()
        if not low <= self.start_bits <= high:
            nearest = low if self.start_bits < low else high
            raise ValueError(
                f"target_bits is {self.start_bits:g}, outside the palette ({low}, {high}); "
                f"the nearest possible is {nearest}, or choose another palette"
            )
        if self.other_target is None:
            object.__setattr__(self, "target_bits", self.start_bits)
        if not 0 <= self.least_share <= 0.5:
            raise ValueError(f"least_share is {self.least_share}, expected 0 to 0.5: each of two levels holds so much")
        for name in ("first_bits", "last_bits", "embedding_bits", "edge_bits"):
            if getattr(self, name) is not None:
                _width(name, getattr(self, name))
        object.__setattr__(self, "nested_bits", self._nested())
        if isinstance(self.exclude, str):
            raise TypeError(
                f"exclude is the string {self.exclude!r}, expected a list of names; write [{self.exclude!r}]"
            )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                *first, last = map(repr, choices)
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {', '.join(first)} or {last}")
        self._check_few_levels()

    def _nested(self) -> tuple[int, ...]:
        """The lower widths, each once, falling."""
        if not isinstance(self.nested_bits, (tuple, list)):
            raise TypeError(f"nested_bits is {self.nested_bits!r}, expected a list of widths, such as [2, 4]")
        found = tuple(sorted({_width("nested_bits", bits) for bits in self.nested_bits}, reverse=True))
        high = self.levels[1]
        if found and found[0] >= high:
            raise ValueError(
                f"nested_bits has {found[0]}, expected widths below {high}, the high level of the palette, which is there in any case"
            )
        return found

    def _check_few_levels(self) -> None:
        """What only ternary or one-bit weights can have."""
        ternary, one_bit = self.w_grid == "ternary", self.levels == (1, 1)
        if ternary and self.levels != (2, 2):
            raise ValueError(
                f"w_grid is 'ternary' and the palette {self.levels}, expected (2, 2): Config.uniform(2, w_grid='ternary')"
            )
        if ternary and self.nested_bits:
            raise ValueError("w_grid is 'ternary', whose planes are no weights of fewer bits; leave nested_bits out")
        if self.w_scale != "learned" and not (ternary or one_bit):
            raise ValueError(
                f"w_scale is {self.w_scale!r} and the weights have {self.levels} bits, expected ternary or one-bit weights: "
                "Config.uniform(2, w_grid='ternary', ...) or Config.uniform(1, ...); or take 'learned'"
            )

    def _check_targets(self) -> None:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given, expected one target")
        for name in given[:1]:
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}, expected a positive number")

    @property
    def levels(self) -> tuple[int, int]:
        """The palette; the ends of what may be learned where that is "auto"."""
        return (1, 8) if self.palette == AUTO else self.palette

    @property
    def other_target(self) -> str | None:
        """The name of the target that is given, if it is not target_bits."""
        return next((name for name in TARGETS[1:] if getattr(self, name) is not None), None)

    @property
    def start_bits(self) -> float:
        """Where every channel's precision begins."""
        low, high = self.levels
        return low + (high - low) / 4 if self.target_bits is None else float(self.target_bits)

    @classmethod
    def uniform(cls, bits: int, a_bits: int | None = None, **fields) -> Config:
        """Every channel of every learned layer has `bits` bits (activations `a_bits`): the baseline of a mixed network."""
        a_palette = None if a_bits is None else (a_bits, a_bits)
        return cls(palette=(bits, bits), a_palette=a_palette, target_bits=bits, **fields)


def _palette(name: str, palette: object) -> tuple[int, int]:
    if not isinstance(palette, (tuple, list)) or len(palette) != 2:
        raise ValueError(f"{name} is {palette!r}, expected two precisions, (low, high)")
    low, high = (_width(name, bits) for bits in palette)
    if low > high:
        raise ValueError(f"{name} is ({low}, {high}), expected the lower precision first: ({high}, {low})")
    return low, high


def _width(name: str, bits: object) -> int:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"{name} has {bits!r}, expected whole bits in 1..8")
    return bits
