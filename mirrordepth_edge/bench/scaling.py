"""How latency grows with what is computed: a fixed, a linear and a quadratic part, fitted to medians.

A launch costs the same whatever the picture, convolutions and projections cost so much a token, and attention
compares every token with every other. Hence t(n) = fixed + linear n + quadratic n², no part of it negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mirrordepth_edge.bench.stats import MIN_SAMPLES, Samples, block_starts, resampled_medians
from mirrordepth_edge.config import ModelConfig
from mirrordepth_edge.errors import InputError, OptionError

MIN_SIZES = 4
"""One more than the law has parameters: three would always fit."""
POOR = 0.1
"""Worst misfit above which the sizes do not follow the law."""
ROUNDING = 1e-20
"""Of squared relative errors: a part that improves the fit by less is none."""
UNITS_MS = {"ms": 1.0, "us": 1e-3, "ns": 1e-6}


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval, which is 0 to infinity where there are too few frames to tell."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ScalingModel:
    """t(n) = fixed + linear n + quadratic n², in milliseconds."""

    unit: str
    """What is counted, such as `token`."""
    sizes: tuple[float, ...]
    """The n that were measured, ascending."""
    fixed_ms: Estimate
    linear_ms: Estimate
    """For each of the units."""
    quadratic_ms: Estimate
    """For each pair of them."""
    quadratic_share: Estimate
    """The quadratic part of t at the largest size, 0…1."""
    misfit: float
    """The largest |t(n) / median(n) - 1| over the sizes."""
    linear_misfit: float
    """The same of the best law without a quadratic part."""

    def at(self, n: float) -> float:
        """Milliseconds at size `n`."""
        return self.fixed_ms.value + self.linear_ms.value * n + self.quadratic_ms.value * n**2

    @property
    def is_quadratic(self) -> bool:
        """Whether there is a quadratic part: beyond chance, and the law fits twice as well with it as without it.

        Caches and the shapes that kernels like bend any law by a few percent, which no number of frames averages out.
        """
        return self.quadratic_share.low > 0 and self.linear_misfit > 2 * self.misfit

    def describe(self) -> str:
        """The law and how far to trust it, in a sentence."""
        parts = (
            (self.fixed_ms, ""),
            (self.linear_ms, f" a {self.unit}"),
            (self.quadratic_ms, f" a {self.unit}²"),
        )
        law = " + ".join(_time(part) + of for part, of in parts if part.value > 0)
        largest = f"at {self.sizes[-1]:g} {self.unit}s"
        share = self.quadratic_share
        if self.misfit > POOR:
            return f"{law}, which these sizes do not follow: it is off by up to {self.misfit:.0%}"
        if self.is_quadratic:
            verdict = f"{largest} the quadratic part is {share.value:.0%} ({share.low:.0%} to {share.high:.0%})"
        elif math.isfinite(share.high):
            beyond = max(share.high, self.misfit)
            verdict = f"a quadratic part cannot be told from zero (less than {max(beyond, 0.01):.0%} {largest})"
        else:
            verdict = "too few frames to tell the parts apart"
        return f"{law}: {verdict}; the law is off by up to {self.misfit:.1%}"


def fit(sizes: Sequence[float], samples_ms: Sequence[Samples], unit: str = "token") -> ScalingModel:
    """Fit the law to the medians of what was timed in turn.

    Least squares of relative errors, none of the three parts negative. Intervals are those of the medians: the same
    blocks of frames are resampled at every size (`stats.ratio_interval`), the parts fitted anew. They hold the scatter
    of the frames, not what the law leaves out; `misfit` tells that.

    Args:
        sizes: n of each measurement, positive, at least `MIN_SIZES` different ones.
        samples_ms: for each, shape `[frames]`; frame k of all sizes one right after the other.
        unit: what n counts, in the singular.

    Raises:
        OptionError: there are too few sizes.
        InputError: samples are missing, not positive and finite, or not equally many at each size.
    """
    if len(set(sizes)) < MIN_SIZES:
        raise OptionError(
            f"There is no law of {len(set(sizes))} sizes.",
            f"It has three parts, so that fewer than {MIN_SIZES} different sizes always fit.",
            "Measure more sizes.",
        )
    order = np.argsort(sizes)
    n = np.asarray(sizes, np.float64)[order]
    ordered = [np.asarray(samples_ms[place], np.float64) for place in order]
    frames = len(ordered[0])
    if frames == 0 or any(len(own) != frames or not (np.isfinite(own) & (own > 0)).all() for own in ordered):
        counts = ", ".join(str(len(own)) for own in ordered)
        raise InputError(
            "These measurements make no law.",
            f"Each size needs as many frames, with positive times; there are {counts}.",
            "Measure all sizes in turn: mde bench --suite resolutions",
        )
    medians = np.array([np.median(own) for own in ordered])
    parts = _solve(n, medians, medians[:, None])
    if frames < MIN_SAMPLES:
        resampled = None
    else:
        starts = block_starts(frames, np.random.default_rng(0))
        resampled = _solve(n, medians, np.stack([resampled_medians(own, starts) for own in ordered]))
    fixed_ms, linear_ms, quadratic_ms = (
        _estimate(parts[row, 0], None if resampled is None else resampled[row]) for row in range(3)
    )
    return ScalingModel(
        unit=unit,
        sizes=tuple(n.tolist()),
        fixed_ms=fixed_ms,
        linear_ms=linear_ms,
        quadratic_ms=quadratic_ms,
        quadratic_share=_estimate(_share(parts, n[-1])[0], None if resampled is None else _share(resampled, n[-1])),
        misfit=_misfit(parts, n, medians),
        linear_misfit=_misfit(_solve(n, medians, medians[:, None], parts=2), n, medians),
    )


def units_of(model: ModelConfig) -> tuple[int, str]:
    """How many units a model computes for a frame, and what they are.

    A ViT's tokens: patches and the class token. A convolutional tower's cells: of its deepest map, whose attention
    sees them all; what it computes on finer maps is proportional to them.
    """
    height, width = model.size_hw
    if model.pyramid:
        stride = model.size_multiple
        return (height // stride) * (width // stride), f"{stride}-pixel cell"
    return (height // model.stride) * (width // model.stride) + 1, "token"


def _powers(n: Samples) -> Samples:
    """1, n and n², shape `[3, sizes]`."""
    return np.stack([np.ones_like(n), n, n**2])


def _solve(n: Samples, weights: Samples, times_ms: Samples, parts: int = 3) -> Samples:
    """The parts, none negative, that fit best relative to `weights`.

    Of all fits with some of the parts and without the others, the best one that is not negative is the solution: its
    parts that are not zero are the unconstrained fit of themselves (Lawson and Hanson, Solving Least Squares Problems,
    1974, chapter 23). Three parts have seven such fits.

    Args:
        times_ms: shape `[sizes, fits]`, positive.
        parts: 3, or 2 to go without the quadratic one.

    Returns:
        Shape `[3, fits]`.
    """
    scale = _powers(n[-1:])
    design = (_powers(n) / scale / weights).T
    goal = times_ms / weights[:, None]
    best = np.full(goal.shape[1], np.inf)
    found = np.zeros((3, goal.shape[1]))
    for count in range(1, parts + 1):
        for chosen in map(list, combinations(range(parts), count)):
            own = np.linalg.pinv(design[:, chosen]) @ goal
            error = ((design[:, chosen] @ own - goal) ** 2).sum(axis=0)
            better = (own >= 0).all(axis=0) & (error < best - ROUNDING)
            best = np.where(better, error, best)
            kept = np.zeros_like(found)
            kept[chosen] = own
            found = np.where(better, kept, found)
    return found / scale


def _misfit(parts: Samples, n: Samples, medians: Samples) -> float:
    return float(np.abs(parts[:, 0] @ _powers(n) / medians - 1).max())


def _share(parts: Samples, n: float) -> Samples:
    """The quadratic part of t(n), shape `[fits]`."""
    each = parts * np.array([[1.0], [n], [n**2]])
    return each[2] / each.sum(axis=0)  # type: ignore[no-any-return]


def _estimate(value: float, resampled: Samples | None) -> Estimate:
    if resampled is None:
        return Estimate(float(value), 0.0, math.inf)
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Estimate(float(value), float(low), float(high))


def _time(estimate: Estimate) -> str:
    """Such as `12.3 us (12.1 to 12.6)`, in the unit that suits the value."""
    unit = next((unit for unit, factor in UNITS_MS.items() if estimate.value >= factor / 10), "ns")
    value, low, high = (_figure(each / UNITS_MS[unit]) for each in (estimate.value, estimate.low, estimate.high))
    return f"{value} {unit} ({low} to {high})" if math.isfinite(estimate.high) else f"{value} {unit}"


def _figure(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:.3g}" if 0.001 <= value < 999.5 else f"{value:.0f}"
