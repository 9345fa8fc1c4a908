"""Activation ranges for INT8: statistics of every tensor on real frames, and the choice of clipping ranges.

Frames stream through the FP32 model on the CPU. Each tensor keeps a histogram whose bins double in width as values
grow, so that memory does not depend on the number of frames, one pass is enough, and every method reads the same
statistics.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends.onnxruntime import create_inference_session
from mirrordepth_edge.config import CalibrationMethod, SessionOptions
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.graph.subgraph import with_outputs

if TYPE_CHECKING:
    import onnx

Floats = npt.NDArray[np.float64]

BINS = 4096
"""Bins of a histogram, half of them for negative values. At least 1024 are in use up to the largest magnitude, which is
eight per step of an 8-bit quantiser that does not clip."""
HALF = BINS // 2
CHUNK = 1 << 15
"""Number of values binned at a time, so that intermediate arrays stay in the CPU cache."""
SHARES: Floats = np.geomspace(1 / 64, 1, 97)
NEARBY: Floats = np.geomspace(1 / 1.05, 1.05, 13)
"""Factors to try on the end of a range: first a coarse search, then a fine one around its result."""
EXTENT_SHARE, OUT_OF_RANGE = 0.999, 0.001
MAX_DRIFT, MAX_OUT_OF_RANGE = 0.3, 0.2
"""Largest accepted mean |log2 range ratio| and out-of-range share between calibration and reference images. With
`nano`, five sets of real scenes (homes, a hall, boxes, roads, photos; 3 to 32 images each) had at most 0.25 and 0.14
against each other, uniform noise at least 0.32 and 0.28, plain grey, black or white at least 0.46 and 0.53. A set in
inverted colours passes, because it has the same ranges."""
MAX_LOG2_RATIO = 8.0
MIN_EXPONENT = -100
"""Magnitudes below 2^-100 share a bin, so that the bin width and its reciprocal are normal float32 numbers."""


@dataclass(frozen=True)
class Range:
    """Range of an activation; values outside are clipped.

    `Range(0, 0)` is a tensor that was zero on all frames; its quantiser has scale 1.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low <= 0 <= self.high < math.inf:
            raise ValueError(f"a range must be finite and contain zero: {self.low} .. {self.high}")

    @property
    def extent(self) -> float:
        """The largest magnitude that is not clipped, which a symmetric quantiser covers in both directions."""
        return max(-self.low, self.high)


Ranges = dict[str, Range]
"""Ranges by the tensor's name in the FP32 graph."""


@dataclass(frozen=True, kw_only=True)
class TensorStatistics:
    """Statistics of one tensor over all frames."""

    counts: npt.NDArray[np.int64]
    """`[BINS]`; bin i holds the values from `(i - HALF) * width` up to, and without, `(i + 1 - HALF) * width`."""
    width: float
    """Width of a bin: the smallest power of two that covers all values, so that counts do not depend on the order of
    frames."""
    minimum: float
    maximum: float

    @property
    def count(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    @property
    def edges(self) -> Floats:
        """Edges of the bins, `[BINS + 1]`, exact."""
        return np.arange(-HALF, HALF + 1, dtype=np.float64) * self.width

    @property
    def magnitudes(self) -> npt.NDArray[np.int64]:
        """Counts by magnitude, `[HALF]`, in bins of the same width."""
        return self.counts[HALF:] + self.counts[HALF - 1 :: -1]

    def range(
        self, method: CalibrationMethod, *, percentile: float = 99.99, bits: int = 8, symmetric: bool = False
    ) -> Range:
        """Choose a clipping range. It contains 0 and does not exceed the observed values.

        * `max`: nothing is clipped.
        * `percentile`: each end cuts off `(100 - percentile) / 2` percent of the values.
        * `entropy`: the magnitude at which the Kullback-Leibler divergence of the clipped values from the quantised
          ones is smallest (S. Migacz, "8-bit inference with TensorRT", GTC 2017, as in TensorRT's and Model Optimizer's
          calibrators). It was made for activations with long tails, and may clip too much of others.
        * `mse`: the ends with the smallest expected squared error of rounding and clipping, for values distributed
          uniformly within their bin.

        Args:
            percentile: share of the values that `percentile` keeps, in percent, above 50.
            bits: bits of the quantised values.
            symmetric: whether the quantiser is symmetric about zero. If so, `extent` is divided into `2^(bits-1) - 1`
                steps and the zero point is 0. Otherwise there are `2^bits - 1` steps from `low` to `high`, and the zero
                point is rounded.
        """
        full = Range(min(self.minimum, 0.0), max(self.maximum, 0.0))
        if method == "max" or full.extent <= self.width:  # a single bin has no information on the distribution
            return full
        if method == "percentile":
            return self._percentile(full, percentile)
        if method == "entropy":
            one_sided = 0 in (full.low, full.high) and not symmetric
            return _clipped(full, _entropy_bins(self.magnitudes, 1 << (bits - 1 + one_sided)) * self.width)
        return _least_squares(self, full, bits, symmetric)

    def extent(self, share: float) -> float:
        """Return the magnitude that a share of the values (0..1) does not exceed, to a bin's width."""
        extent = np.interp(share * self.count, np.append(0, np.cumsum(self.magnitudes)), self.edges[HALF:])
        return min(float(extent), max(-self.minimum, self.maximum))

    def share_outside(self, limits: Range) -> float:
        """Return the share of values that `limits` clips, 0..1, assuming a uniform distribution within a bin."""
        if limits.low <= self.minimum and self.maximum <= limits.high:
            return 0.0
        below = np.interp([limits.low, limits.high], self.edges, np.append(0, np.cumsum(self.counts)))
        left = below[0] if limits.low > self.minimum else 0.0
        right = self.count - below[1] if limits.high < self.maximum else 0.0
        return float(left + right) / self.count

    def _percentile(self, full: Range, percentile: float) -> Range:
        share = (100 - percentile) / 200
        at = np.array([share, 1 - share]) * self.count
        low, high = np.interp(at, np.append(0, np.cumsum(self.counts)), self.edges)
        return Range(min(max(float(low), full.low), 0.0), max(min(float(high), full.high), 0.0))


@dataclass(frozen=True, kw_only=True)
class ActivationStatistics:
    """Statistics of all tensors over all frames."""

    tensors: Mapping[str, TensorStatistics]
    """By name, in the requested order."""
    frames: int

    def ranges(self, method: CalibrationMethod, *, symmetric: bool = False) -> Ranges:
        """Choose a clipping range for every tensor; see `TensorStatistics.range`."""
        return {name: tensor.range(method, symmetric=symmetric) for name, tensor in self.tensors.items()}


def collect(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    images: Iterable[npt.NDArray[Any]],
    *,
    on_frame: Callable[[int], object] = lambda done: None,
) -> ActivationStatistics:
    """Run real frames through a model and collect statistics of its tensors.

    Memory holds the tensors of one frame at a time (ViT-B/16 at 352x352 pixels: 125 MB for the inputs of all layers,
    300 MB with their outputs), and twice the model while it is copied.

    Args:
        model: FP32 with one input; it is not changed.
        tensors: names of activations; the input and the output are allowed.
        images: network inputs, one inference each. They are iterated once; an array may be reused for the next.
        on_frame: called after each frame with the number of frames done.

    Raises:
        InputError: there is no frame, an activation is not finite, or ONNX Runtime cannot run the model.
    """
    scratch = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.int64)
    histograms = {name: _Histogram(scratch) for name in tensors}
    done = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(with_outputs(model, histograms).SerializeToString())
        # Without yields, ONNX Runtime's threads keep the cores busy that NumPy needs next.
        session = create_inference_session(path, SessionOptions(device="cpu", yields=True))
    (source,) = (value.name for value in session.get_inputs())
    fetched = [name for name in histograms if name != source]
    for image in images:
        values = {source: image}
        if fetched:  # for ONNX Runtime, an empty list means all outputs
            values.update(zip(fetched, session.run(fetched, {source: image}), strict=True))
        for name, histogram in histograms.items():
            if not histogram.add(values[name]):
                raise InputError(
                    f"The activation {name} is not finite on frame {done + 1}.",
                    "The FP32 model itself overflows, or its weights contain NaN.",
                    "Check that frame, run the FP32 model on it with mde run, or train or export the model again.",
                )
        done += 1
        on_frame(done)
    if not done:
        raise InputError(
            "There are no frames to calibrate INT8 with.",
            "Activation ranges are measured on real images; random data would give wrong ranges.",
            "Pass a folder of images from the camera that the model will be used with.",
        )
    return ActivationStatistics(
        tensors={name: histogram.statistics() for name, histogram in histograms.items()}, frames=done
    )


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How well the activations of calibration frames cover those of other frames."""

    log2_range_ratio: Mapping[str, float]
    """log2 of the ratio of extents, calibration over observed frames, by tensor. The largest 0.1 % of magnitudes are
    ignored. 0 if both are all zeros; limited to +-`MAX_LOG2_RATIO`."""
    out_of_range_share: float
    """Share of tensors with more than `OUT_OF_RANGE` of their observed values outside the calibrated values."""

    @property
    def drift(self) -> float:
        """Mean |log2 range ratio| over tensors."""
        return float(np.mean(np.abs(list(self.log2_range_ratio.values()))))

    @property
    def problem(self) -> str | None:
        """Why the calibration frames seem to be from another domain than the observed ones; None if they do not."""
        if self.drift <= MAX_DRIFT and self.out_of_range_share <= MAX_OUT_OF_RANGE:
            return None
        return (
            "There are too few calibration images, or they are from another domain than camera images: activation "
            f"ranges differ by a factor of {2**self.drift:.2f} on average (limit: {2**MAX_DRIFT:.2f}), and "
            f"{self.out_of_range_share:.0%} of the tensors have more than {OUT_OF_RANGE:.1%} of their values outside "
            f"the calibrated range (limit: {MAX_OUT_OF_RANGE:.0%} of the tensors)."
        )


def coverage(calibrated: ActivationStatistics, observed: ActivationStatistics) -> Coverage:
    """Compare statistics of calibration frames with those of reference images, of the same tensors."""
    # The full calibrated ranges, because a calibration method may clip on purpose.
    outside = [observed.tensors[name].share_outside(full) for name, full in calibrated.ranges("max").items()]
    return Coverage(
        log2_range_ratio={
            name: _log2_range_ratio(tensor, observed.tensors[name]) for name, tensor in calibrated.tensors.items()
        },
        out_of_range_share=float(np.mean([share > OUT_OF_RANGE for share in outside])),
    )


def _log2_range_ratio(calibrated: TensorStatistics, observed: TensorStatistics) -> float:
    first, second = calibrated.extent(EXTENT_SHARE), observed.extent(EXTENT_SHARE)
    if first == second:
        return 0.0
    if not first or not second:
        return math.copysign(MAX_LOG2_RATIO, first - second)
    return min(max(math.log2(first / second), -MAX_LOG2_RATIO), MAX_LOG2_RATIO)


class _Histogram:
    """Histogram of one tensor, symmetric about zero, whose bins widen as values grow.

    Args:
        scratch: buffers of `[CHUNK]` values, shared by all histograms.
    """

    def __init__(self, scratch: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.exponent = MIN_EXPONENT
        """All magnitudes are below 2 to this power, which `HALF` bins cover."""
        self.minimum, self.maximum = math.inf, -math.inf
        self._scratch = scratch

    def add(self, values: npt.NDArray[Any]) -> bool:
        """Add values; return False if one is not finite."""
        flat = values.reshape(-1)
        for first in range(0, flat.size, CHUNK):
            chunk = flat[first : first + CHUNK]
            minimum, maximum = float(chunk.min()), float(chunk.max())  # both NaN if one value is
            if not (math.isfinite(minimum) and math.isfinite(maximum)):
                return False
            self.minimum, self.maximum = min(self.minimum, minimum), max(self.maximum, maximum)
            if magnitude := max(-minimum, maximum):
                self._grow(math.frexp(magnitude)[1])
            scaled, index = (buffer[: chunk.size] for buffer in self._scratch)
            # The width is a power of two: no product is rounded, so bins can be merged exactly.
            np.multiply(chunk, np.float32(1 / self.width), out=scaled)
            np.floor(scaled, out=scaled)
            np.add(scaled, HALF, out=scaled)
            index[...] = scaled
            self.counts += np.bincount(index, minlength=BINS)
        return True

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self.exponent) / HALF

    def _grow(self, exponent: int) -> None:
        """Merge bins in pairs until they cover 2 to the power of `exponent`."""
        if exponent <= self.exponent:
            return
        doublings = min(exponent - self.exponent, HALF.bit_length())  # more would not change anything
        merged = np.zeros(BINS, np.int64)
        np.add.at(merged, (np.arange(-HALF, HALF) >> doublings) + HALF, self.counts)
        self.counts, self.exponent = merged, exponent

    def statistics(self) -> TensorStatistics:
        return TensorStatistics(counts=self.counts, width=self.width, minimum=self.minimum, maximum=self.maximum)


def _clipped(full: Range, extent: float) -> Range:
    """Limit a range to magnitudes up to `extent`."""
    return Range(max(full.low, -extent), min(full.high, extent))


def _entropy_bins(magnitudes: npt.NDArray[np.int64], levels: int) -> int:
    """Return the number of bins to keep so that `levels` levels lose the least information.

    For i bins kept, P is the histogram up to i with all beyond counted in its last bin, and Q what is left of the bins
    up to i when each of `levels` groups of them shares its counts evenly among those that are not empty. Within a
    group Q is one number, so KL(P|Q) needs only sums over groups, and these are differences of running sums.

    Args:
        magnitudes: `[bins]` counts by magnitude.
    """
    counts = np.trim_zeros(magnitudes, "b").astype(np.float64)
    if len(counts) <= levels:
        return len(counts)
    counts[0] = counts[1]  # zeros are exact at any scale and would outweigh all else; so do NVIDIA's calibrators
    kept = np.arange(levels, len(counts) + 1)
    groups = -(-np.arange(levels + 1) * kept[:, None] // levels)  # [candidates, levels + 1] first bins
    running, filled = (np.append(0, np.cumsum(values)) for values in (counts, counts > 0))
    inside, bins = np.diff(running[groups]), np.diff(filled[groups])
    beyond = running[-1] - running[kept]
    last = counts[kept - 1]

    expected = np.append(0, np.cumsum(_x_log_x(counts)))[kept] - _x_log_x(last) + _x_log_x(last + beyond)
    level = np.log(np.divide(inside, bins, out=np.ones_like(inside), where=bins > 0))
    crossed = (inside * level).sum(axis=1) + beyond * level[:, -1]
    with np.errstate(divide="ignore"):
        divergence = (expected - crossed) / running[-1] + np.log(running[kept]) - np.log(running[-1])
    divergence[(last == 0) & (beyond > 0)] = np.inf  # Q is empty where P is not
    return int(kept[len(kept) - 1 - np.argmin(divergence[::-1])])


def _x_log_x(x: Floats) -> Floats:
    return x * np.log(np.where(x > 0, x, 1))


def _least_squares(tensor: TensorStatistics, full: Range, bits: int, symmetric: bool) -> Range:
    """Search the range with the smallest expected squared error, to 1 percent of each end and down to 1/64 of it."""

    def best(ends: Floats) -> Floats:
        minimum: Floats = ends[np.argmin(_expected_error(tensor, ends, bits, symmetric))]
        return minimum

    whole = np.array([full.low, full.high])
    # Both ends together first, because changing one gains little while the other is far off; then each in turn.
    chosen = whole
    for shares in (SHARES, NEARBY):
        extents = np.abs(chosen).max() * shares[:, None]
        chosen = best(np.clip(whole, -extents, extents))
    if not symmetric and whole.all():
        for shares in (SHARES, SHARES, NEARBY):
            for end in (0, 1):
                ends = np.tile(chosen, (1 + len(shares), 1))  # includes the current one, so that no step makes it worse
                ends[1:, end] = (whole if shares is SHARES else chosen)[end] * shares
                chosen = best(np.clip(ends, *whole))
    return Range(float(chosen[0]), float(chosen[1]))


def _expected_error(tensor: TensorStatistics, ends: Floats, bits: int, symmetric: bool) -> Floats:
    """Sum of squared errors of quantised values, for values distributed uniformly within their bin.

    Inside the range the error at x is r = x - s round(x / s) for steps of s, the integral of whose square from 0 on is
    `s^3 / 12` for every whole step and `r^3 / 3` for the rest; beyond an end at e it is x - e. The bin that starts at
    zero is left out: after a ReLU it holds zeros, which are exact, and else its error is the same for all candidates.

    Args:
        ends: `[candidates, 2]` low and high.

    Returns:
        `[candidates]`, in the activation's unit squared.
    """
    low, high = ends[:, :1], ends[:, 1:]
    if symmetric:
        step = np.maximum(-low, high) / ((1 << (bits - 1)) - 1)
        first, last = -step * ((1 << (bits - 1)) - 1), step * ((1 << (bits - 1)) - 1)
    else:
        step = (high - low) / ((1 << bits) - 1)
        first = step * np.rint(low / step)
        last = first + high - low
    counts = tensor.counts.copy()
    counts[HALF] = 0
    filled = np.flatnonzero(counts)
    used = slice(filled[0], filled[-1] + 1)
    edges = tensor.edges[used.start : used.stop + 1]
    inside = np.clip(edges, first, last)
    steps = np.rint(inside / step)
    rest, beyond = inside - steps * step, edges - inside
    # Multiplied out, because NumPy's power function is fifty times slower.
    integral = steps * (step**3 / 12) + (rest * rest * rest + beyond * beyond * beyond) / 3
    error: Floats = np.diff(integral, axis=1) @ counts[used] / tensor.width
    return error
