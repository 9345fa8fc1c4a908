"""Latency as a function of the number of tokens: a fixed, a linear and a quadratic part, fitted to medians.

Kernel launches have a fixed cost, convolutions and projections are linear in the number of tokens, and attention is
quadratic. Hence t(n) = fixed + linear n + quadratic n² with non-negative parts.
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
"""One more than the model has parameters: three sizes would always fit."""
POOR = 0.1
"""Largest misfit at which the measurements still follow the model."""
ROUNDING = 1e-20
"""Smallest improvement of the squared relative error that justifies another part."""
UNITS_MS = {"ms": 1.0, "us": 1e-3, "ns": 1e-6}


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % bootstrap interval; 0 to infinity for too few frames."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ScalingModel:
    """t(n) = fixed + linear n + quadratic n², in milliseconds."""

    unit: str
    """What n counts, such as `token`."""
    sizes: tuple[float, ...]
    """The measured n, ascending."""
    fixed_ms: Estimate
    linear_ms: Estimate
    """Per unit."""
    quadratic_ms: Estimate
    """Per unit squared."""
    quadratic_share: Estimate
    """Fraction of t at the largest size that is quadratic, 0…1."""
    misfit: float
    """Maximum of |t(n) / median(n) - 1| over the sizes."""
    linear_misfit: float
    """The same for the best model without a quadratic part."""

    def at(self, n: float) -> float:
        """Predict the latency at size `n`, in milliseconds."""
        return self.fixed_ms.value + self.linear_ms.value * n + self.quadratic_ms.value * n**2

    @property
    def is_quadratic(self) -> bool:
        """Whether the quadratic part is significant and halves the misfit."""
        # Cache sizes and kernel tile shapes deviate from any model by a few percent, however many frames are measured.
        return self.quadratic_share.low > 0 and self.linear_misfit > 2 * self.misfit

    def describe(self) -> str:
        """Format the model and its reliability as a sentence."""
        parts = (
            (self.fixed_ms, ""),
            (self.linear_ms, f" per {self.unit}"),
            (self.quadratic_ms, f" per {self.unit}²"),
        )
        formula = " + ".join(_time(part) + suffix for part, suffix in parts if part.value > 0)
        largest = f"at {self.sizes[-1]:g} {self.unit}s"
        share = self.quadratic_share
        if self.misfit > POOR:
            return f"{formula}, but the measurements deviate from it by up to {self.misfit:.0%}"
        if self.is_quadratic:
            verdict = f"{largest} the quadratic part is {share.value:.0%} ({share.low:.0%} to {share.high:.0%})"
        elif math.isfinite(share.high):
            bound = max(share.high, self.misfit, 0.01)
            verdict = f"no significant quadratic part (less than {bound:.0%} {largest})"
        else:
            verdict = "too few frames to separate the parts"
        return f"{formula}: {verdict}; largest deviation {self.misfit:.1%}"


def fit(sizes: Sequence[float], samples_ms: Sequence[Samples], unit: str = "token") -> ScalingModel:
    """Fit the scaling model to the medians of interleaved measurements.

    Non-negative least squares of the relative errors. For the intervals, the same blocks of frames are resampled at
    every size (`stats.ratio_interval`) and the parts are fitted again. They cover the scatter of the frames, not the
    error of the model, which is `misfit`.

    Args:
        sizes: n of each measurement, positive, at least `MIN_SIZES` different ones.
        samples_ms: for each size, shape `[frames]`; frame k of all sizes was timed back to back.
        unit: what n counts, in the singular.

    Raises:
        OptionError: there are too few sizes.
        InputError: samples are missing, not positive and finite, or their number differs between sizes.
    """
    if len(set(sizes)) < MIN_SIZES:
        raise OptionError(
            f"A scaling model cannot be fitted to {len(set(sizes))} sizes.",
            f"It has three parameters and needs at least {MIN_SIZES} different sizes.",
            "Measure more sizes.",
        )
    order = np.argsort(sizes)
    n = np.asarray(sizes, np.float64)[order]
    ordered = [np.asarray(samples_ms[index], np.float64) for index in order]
    frames = len(ordered[0])
    if frames == 0 or any(len(ms) != frames or not (np.isfinite(ms) & (ms > 0)).all() for ms in ordered):
        counts = ", ".join(str(len(ms)) for ms in ordered)
        raise InputError(
            "A scaling model cannot be fitted to these measurements.",
            f"Every size needs the same number of frames with positive times; there are {counts}.",
            "Measure all sizes interleaved: mde bench --suite resolutions",
        )
    medians = np.array([np.median(ms) for ms in ordered])
    parts = _solve(n, medians, medians[:, None])
    if frames < MIN_SAMPLES:
        resampled = None
    else:
        starts = block_starts(frames, np.random.default_rng(0))
        resampled = _solve(n, medians, np.stack([resampled_medians(ms, starts) for ms in ordered]))
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
    """Count the units that a model computes per frame, and name them.

    For a ViT, the tokens: patches and the class token. For a convolutional tower, the cells of its deepest feature map,
    over which its attention runs. The cost of finer maps is proportional to them.
    """
    height, width = model.size_hw
    if model.pyramid:
        stride = model.size_multiple
        return (height // stride) * (width // stride), f"{stride}-pixel cell"
    return (height // model.stride) * (width // model.stride) + 1, "token"


def _powers(n: Samples) -> Samples:
    """Stack 1, n and n², shape `[3, sizes]`."""
    return np.stack([np.ones_like(n), n, n**2])


def _solve(n: Samples, weights: Samples, times_ms: Samples, parts: int = 3) -> Samples:
    """Solve the non-negative least squares of errors relative to `weights`.

    Every subset of the parts is fitted without constraints. The best fit without negative parts is the solution
    (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23). Three parts have seven subsets.

    Args:
        times_ms: shape `[sizes, fits]`, positive.
        parts: 3, or 2 to omit the quadratic part.

    Returns:
        Shape `[3, fits]`.
    """
    scale = _powers(n[-1:])
    design = (_powers(n) / scale / weights).T
    target = times_ms / weights[:, None]
    best = np.full(target.shape[1], np.inf)
    solution = np.zeros((3, target.shape[1]))
    for count in range(1, parts + 1):
        for chosen in map(list, combinations(range(parts), count)):
            coefficients = np.linalg.pinv(design[:, chosen]) @ target
            error = ((design[:, chosen] @ coefficients - target) ** 2).sum(axis=0)
            better = (coefficients >= 0).all(axis=0) & (error < best - ROUNDING)
            best = np.where(better, error, best)
            candidate = np.zeros_like(solution)
            candidate[chosen] = coefficients
            solution = np.where(better, candidate, solution)
    return solution / scale


def _misfit(parts: Samples, n: Samples, medians: Samples) -> float:
    return float(np.abs(parts[:, 0] @ _powers(n) / medians - 1).max())


def _share(parts: Samples, n: float) -> Samples:
    """Compute the quadratic fraction of t(n), shape `[fits]`."""
    terms = parts * np.array([[1.0], [n], [n**2]])
    return terms[2] / terms.sum(axis=0)  # type: ignore[no-any-return]


def _estimate(value: float, resampled: Samples | None) -> Estimate:
    if resampled is None:
        return Estimate(float(value), 0.0, math.inf)
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Estimate(float(value), float(low), float(high))


def _time(estimate: Estimate) -> str:
    """Format as `12.3 us (12.1 to 12.6)`, in a unit that fits the value."""
    unit = next((unit for unit, factor in UNITS_MS.items() if estimate.value >= factor / 10), "ns")
    value, low, high = (_figure(ms / UNITS_MS[unit]) for ms in (estimate.value, estimate.low, estimate.high))
    return f"{value} {unit} ({low} to {high})" if math.isfinite(estimate.high) else f"{value} {unit}"


def _figure(value: float) -> str:
    """Format with three digits and without an exponent."""
    return f"{value:.3g}" if 0.001 <= value < 999.5 else f"{value:.0f}"
