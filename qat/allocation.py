"""Which channels get which precision: the search that `freeze` does, for one palette and over palettes.

At the end of the noise phase a channel's learned bits p balance loss against cost: with noise of power 4^-p, the loss
that a channel with b bits adds is in proportion to cost * 4^(p - b), where cost is that of one more bit. The search makes the
sum of that as small as the budget allows, by always buying what a unit of the budget buys best (Shoham and Gersho, 1988), in
each tensor for the channels that learned the most bits, and says what it expects: `Allocation.distortion`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from .cost import Cost, bit_cost, layer_cost, padded_channels
from .exactness import Pair
from .tensors import InputQuantizer, Palette

PALETTES: tuple[Palette, ...] = tuple((low, high) for low in range(1, 5) for high in range(4, 9) if low < high)


@dataclass(frozen=True)
class Allocation:
    """One palette and how its levels are dealt.

    high: channels at the high level, of each tensor. spent, budget: in the unit of the cost, bits or picoseconds a sample.
    distortion: the loss that is expected, of which 1 is what the learned bits, taken as they are, would add.
    loss: measured, where it was asked for.
    """

    palette: Palette
    a_palette: Palette
    high: tuple[int, ...]
    distortion: float
    spent: float
    budget: float
    loss: float | None = None


class Budget:
    """What the tensors of a network may spend.

    target: average bits between the levels that the network was prepared with, counted as `bit_penalty` counts them.
    blocks: channel counts that leave the kernels the least to pad. least_share: of the channels at each of two levels.
    """

    def __init__(
        self,
        inputs: Sequence[InputQuantizer],
        target: float,
        cost: Cost,
        blocks: bool = False,
        least_share: float = 0.1,
    ):
        self.inputs, self.cost, self.blocks, self.least_share = inputs, cost, blocks, least_share
        self.learned = [each.learned_bits().detach().double().cpu().numpy() for each in inputs]
        if not all(np.isfinite(bits).all() for bits in self.learned):
            raise FloatingPointError(
                "a learned precision is NaN: training has diverged; resume from an earlier checkpoint"
            )
        low, high = inputs[0].palette
        share = (round(target, 6) - low) / (high - low)  # a target is a float32 buffer
        levels = _levels(inputs[0].palette, inputs[0].a_palette)
        least, most = (sum(float(self._costs(each, level, level)[0]) for each in inputs) for level in levels)
        self.total = least + share * max(most - least, 0.0)
        self.one_level = share in (0.0, 1.0)  # the user asks for a uniform network
        self.weights = [sum(layer.spread * bit_cost(layer, cost) for layer in each.readers) for each in inputs]

    # --- one palette

    def allocate(self, palette: Palette, a_palette: Palette | None = None) -> Allocation:
        """The best way to deal the levels of a palette. Raises ValueError that names the nearest possible budget."""
        a_palette = a_palette or palette
        low, high = _levels(palette, a_palette)
        tensors = [self._tensor(i, low, high) for i in range(len(self.inputs))]
        chosen = _choose(tensors, self.total, self._counts())
        if chosen is None:
            raise ValueError(self._refusal(palette, _spent(tensors, _cheapest(tensors, self._counts()[0]))))
        learned = sum(w * len(bits) for w, bits in zip(self.weights, self.learned, strict=True))
        found = [(t.count[i], t.distortion[i], t.cost[i]) for t, i in zip(tensors, chosen, strict=True)]
        counts, distortions, costs = zip(*found, strict=True)
        return Allocation(
            palette,
            a_palette,
            tuple(map(int, counts)),
            float(sum(distortions) / learned),
            float(sum(costs)),
            self.total,
        )

    def require(self, palette: Palette, a_palette: Palette | None = None) -> None:
        """Raises ValueError that names the nearest possible budget if the palette cannot meet this one."""
        low, high = _levels(palette, a_palette or palette)
        tensors = [self._tensor(i, low, high) for i in range(len(self.inputs))]
        spent = _spent(tensors, _cheapest(tensors, self._counts()[0]))
        if spent > _allowed(self.total):
            raise ValueError(self._refusal(palette, spent))

    def _refusal(self, palette: Palette, spent: float) -> str:
        return (
            f"the palette {palette} cannot meet the target of {self._in_words(self.total)} with {self.least_share:.0%} of the "
            f"channels at each level; the nearest that it can is {self._in_words(spent)}, or choose another palette or "
            "least_share"
        )

    def _in_words(self, spent: float) -> str:
        full = sum(float(self._costs(each, (8, 8), (8, 8))[0]) for each in self.inputs)
        return (
            f"{8 * spent / full:.4f} average bits"
            if self.cost == "bits"
            else f"{spent / full:.4f} of the time at 8 bits"
        )

    def _counts(self) -> tuple[float, float]:
        """The fewest and the most channels at the high level."""
        channels = sum(map(len, self.learned))
        return (0, channels) if self.one_level else (self.least_share * channels, (1 - self.least_share) * channels)

    def _tensor(self, i: int, low: Pair, high: Pair) -> _Options:
        each, bits = self.inputs[i], np.sort(self.learned[i])[::-1]
        cost = self._costs(each, low, high)
        lost = [self.weights[i] * 4.0 ** (np.minimum(bits, 9) - level[0]) for level in (high, low)]
        distortion = np.concatenate([[0], np.cumsum(lost[0])]) + np.concatenate([np.cumsum(lost[1][::-1])[::-1], [0]])
        count = np.arange(len(bits) + 1)
        keep = _least_padded(each, low, high) if self.blocks else slice(None)
        return _Options(count[keep], cost[keep], distortion[keep])

    def _costs(self, each: InputQuantizer, low: Pair, high: Pair) -> NDArray[np.float64]:
        """Cost of 0, 1, ... all channels at the high level, the rest at the low one."""
        return np.sum([layer_cost(layer, low, high, self.cost) for layer in each.readers], axis=0)

    # --- palettes

    def search(self, loss: Callable[[Allocation], float] | None = None, measured: int = 5) -> list[Allocation]:
        """Every palette that meets the budget, the best first.

        loss: measures an allocation; the `measured` ones of which the least distortion is expected are compared by it.
        Raises ValueError if there is none.
        """
        found, reasons = [], []
        for palette in PALETTES:
            try:
                self._check(palette)
                found.append(self.allocate(palette, None if self._one_palette else self.inputs[0].a_palette))
            except ValueError as reason:
                reasons.append(str(reason))
        if not found:
            raise ValueError(f"no palette meets this budget; {reasons[0]}")
        found.sort(key=lambda each: each.distortion)
        if loss is not None:
            best = sorted(
                (replace(each, loss=loss(each)) for each in found[:measured]), key=lambda each: each.loss or 0.0
            )
            found[:measured] = best
        return found

    @property
    def _one_palette(self) -> bool:
        return self.inputs[0].palette == self.inputs[0].a_palette

    def _check(self, palette: Palette) -> None:
        for each in self.inputs:
            bits = torch.full_like(each.bits, palette[1])
            for layer in each.readers:
                layer.check_bits(bits, bits if self._one_palette else torch.full_like(bits, each.a_palette[1]))


def apply(inputs: Sequence[InputQuantizer], allocation: Allocation) -> None:
    """Fix the bits of these tensors: the channels that learned the most have the high level."""
    for each, count in zip(inputs, allocation.high, strict=True):
        order = torch.sort(each.learned_bits().detach(), descending=True, stable=True).indices
        is_high = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        is_high[order[:count]] = True
        each.set_high(is_high, allocation.palette, allocation.a_palette)


def _levels(palette: Palette, a_palette: Palette) -> tuple[Pair, Pair]:
    """((weights, activations) at the low level, the same at the high one)."""
    low, high = zip(palette, a_palette, strict=True)
    return low, high


def _least_padded(each: InputQuantizer, low: Pair, high: Pair) -> NDArray[np.int64]:
    """The numbers of high channels that leave the least to pad; none and all are among them."""
    work = np.sum([padded_channels(layer, low, high) * layer.weights_per_channel for layer in each.readers], axis=0)
    fits = work == np.min(work[1:-1], initial=np.inf)
    fits[[0, -1]] = True
    return np.flatnonzero(fits)


# --- the search ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Options:
    """Of one tensor, for each possible number of channels at the high level: what it costs and what it loses."""

    count: NDArray[np.int64]
    cost: NDArray[np.float64]
    distortion: NDArray[np.float64]

    def step(self, now: int, left: float, room: float, bonus: float) -> tuple[float, int]:
        """(value of a unit of the budget, option) of the best step from the option `now`; -1 if there is none."""
        more, count = self.cost - self.cost[now], self.count - self.count[now]
        gain = self.distortion[now] - self.distortion + bonus * count
        fits = (more <= left) & (count <= room) & (gain > 0)
        value = np.where(fits, gain / np.maximum(more, 1e-12), -1.0)
        best = int(value.argmax())
        return float(value[best]), best


def _choose(tensors: Sequence[_Options], budget: float, counts: tuple[float, float]) -> list[int] | None:
    """An option of each tensor: little distortion within the budget and with so many high channels; None if there is none."""
    fewest, most = counts
    base = [int(t.cost.argmin()) for t in tensors]
    chosen = _spend(tensors, base, budget, np.inf)
    if fewest <= _count(tensors, chosen) <= most:
        return chosen if _spent(tensors, chosen) <= _allowed(budget) else None
    typical = max(float(np.ptp(t.distortion)) / max(int(t.count[-1]), 1) for t in tensors)
    sign = 1 if _count(tensors, chosen) < fewest else -1
    tries = [_spend(tensors, base, budget, most, sign * typical * 2.0**power) for power in range(-12, 7)]
    tries += [_spend(tensors, start, budget, most) for start in (base, _cheapest(tensors, fewest))]
    fitting = [
        each for each in tries if fewest <= _count(tensors, each) <= most and _spent(tensors, each) <= _allowed(budget)
    ]
    return min(fitting, key=lambda each: _lost(tensors, each), default=None)


def _spend(tensors: Sequence[_Options], start: list[int], budget: float, most: float, bonus: float = 0.0) -> list[int]:
    """Step by step what a unit of the budget buys best, as long as something fits; bonus: for each high channel."""
    chosen = list(start)
    left, room = _allowed(budget) - _spent(tensors, chosen), most - _count(tensors, chosen)
    steps = [t.step(now, left, room, bonus) for t, now in zip(tensors, chosen, strict=True)]
    while (i := max(range(len(steps)), key=lambda i: steps[i][0])) >= 0 and steps[i][0] > 0:
        t, option = tensors[i], steps[i][1]
        more, count = t.cost[option] - t.cost[chosen[i]], t.count[option] - t.count[chosen[i]]
        if more <= left and count <= room:
            chosen[i], left, room = option, left - more, room - count
        steps[i] = t.step(chosen[i], left, room, bonus)
    return chosen


def _cheapest(tensors: Sequence[_Options], fewest: float) -> list[int]:
    """Options with at least so many high channels: always the step that costs the least for a channel."""
    chosen = [int(t.cost.argmin()) for t in tensors]
    while _count(tensors, chosen) < fewest:
        steps = [
            (float(t.cost[o] - t.cost[now]) / int(t.count[o] - t.count[now]), i, o)
            for i, (t, now) in enumerate(zip(tensors, chosen, strict=True))
            for o in np.flatnonzero(t.count > t.count[now])[:1].tolist()
        ]
        _, i, option = min(steps)
        chosen[i] = option
    return chosen


def _allowed(budget: float) -> float:
    return budget * (1 + 1e-12)  # sums of floats


def _spent(tensors: Sequence[_Options], chosen: Sequence[int]) -> float:
    return float(sum(t.cost[i] for t, i in zip(tensors, chosen, strict=True)))


def _lost(tensors: Sequence[_Options], chosen: Sequence[int]) -> float:
    return float(sum(t.distortion[i] for t, i in zip(tensors, chosen, strict=True)))


def _count(tensors: Sequence[_Options], chosen: Sequence[int]) -> int:
    return int(sum(t.count[i] for t, i in zip(tensors, chosen, strict=True)))
