"""Activation ranges for INT8: what every tensor takes on real frames, and where it is best clipped.

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
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends.onnxruntime import create_inference_session
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError, OptionError

if TYPE_CHECKING:
    import onnx

Method = Literal["max", "entropy", "percentile", "mse"]
Floats = npt.NDArray[np.float64]

BINS = 4096
"""Of a histogram, half of them for negative values: at least 1024 up to the largest magnitude, eight for each step of
an 8-bit quantiser that does not clip."""
HALF = BINS // 2
CHUNK = 1 << 15
"""Values binned at a time, so that what is in between stays in a core's cache."""
SHARES: Floats = np.geomspace(1 / 64, 1, 97)
NEARBY: Floats = np.geomspace(1 / 1.05, 1.05, 13)
"""Of an end, where to look for a better one: far and wide, then between two of those."""
EXTENT_SHARE, OUT_OF_RANGE = 0.999, 0.001
MOST_DRIFT, MOST_OUT_OF_RANGE = 0.3, 0.2
"""How far calibration and reference pictures may differ in octaves, and in the share of tensors that leave what was
calibrated. With `nano`, five sets of real scenes (homes, a hall, boxes, roads, photographs; 3 to 32 pictures each) had
at most 0.25 and 0.14 against each other, uniform noise at least 0.32 and 0.28, plain grey, black or white at least 0.46
and 0.53. A set in inverted colours passes, as it gives the same ranges."""
MOST_LOG2_RATIO = 8.0
SMALLEST_EXPONENT = -100
"""Magnitudes below 2^-100 share a bin: the bin's width and its reciprocal stay normal float32 numbers."""


@dataclass(frozen=True)
class Range:
    """What an activation takes; what lies outside is clipped.

    `Range(0, 0)` is a tensor that was zero on all frames: its quantiser takes the scale 1.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low <= 0 <= self.high < math.inf:
            raise ValueError(f"a range is finite and holds zero: {self.low} .. {self.high}")

    @property
    def extent(self) -> float:
        """The largest magnitude that is not clipped; what a quantiser symmetric about zero spans both ways."""
        return max(-self.low, self.high)


Ranges = dict[str, Range]
"""By the tensor's name in the FP32 graph."""


@dataclass(frozen=True, kw_only=True)
class TensorStatistics:
    """What one tensor held over all frames."""

    counts: npt.NDArray[np.int64]
    """`[BINS]`; bin i holds the values from `(i - HALF) * width` up to, and without, `(i + 1 - HALF) * width`."""
    width: float
    """A power of two, the smallest that has room for all values, so that no order of frames changes a count."""
    minimum: float
    maximum: float

    @property
    def count(self) -> int:
        """Values seen."""
        return int(self.counts.sum())

    @property
    def edges(self) -> Floats:
        """`[BINS + 1]`, exact."""
        return np.arange(-HALF, HALF + 1, dtype=np.float64) * self.width

    @property
    def magnitudes(self) -> npt.NDArray[np.int64]:
        """`[HALF]`: values by magnitude, in bins of the same width."""
        return self.counts[HALF:] + self.counts[HALF - 1 :: -1]

    def range(self, method: Method, *, percentile: float = 99.99, bits: int = 8, symmetric: bool = False) -> Range:
        """The range by one method; see `ActivationStatistics.ranges`."""
        full = Range(min(self.minimum, 0.0), max(self.maximum, 0.0))
        if method == "max" or full.extent <= self.width:  # one bin tells nothing of what is in it
            return full
        if method == "percentile":
            return self._percentile(full, percentile)
        if method == "entropy":
            one_sided = 0 in (full.low, full.high) and not symmetric
            return _clipped(full, _entropy_bins(self.magnitudes, 1 << (bits - 1 + one_sided)) * self.width)
        return _least_squares(self, full, bits, symmetric)

    def extent(self, share: float) -> float:
        """The magnitude that `share` of the values, 0..1, do not exceed, to a bin's width."""
        found = np.interp(share * self.count, np.append(0, np.cumsum(self.magnitudes)), self.edges[HALF:])
        return min(float(found), max(-self.minimum, self.maximum))

    def share_outside(self, limits: Range) -> float:
        """The share of values that `limits` clips, 0..1, with those of a bin spread evenly over it."""
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
    """What tensors held over all frames."""

    tensors: Mapping[str, TensorStatistics]
    """By name, in the order they were asked for."""
    frames: int

    def ranges(self, method: Method, *, percentile: float = 99.99, bits: int = 8, symmetric: bool = False) -> Ranges:
        """Where every tensor is clipped; 0 is always inside, and what a tensor never took is outside.

        * `max`: nothing is clipped.
        * `percentile`: each end cuts off `(100 - percentile) / 2` percent of the values.
        * `entropy`: the magnitude at which the Kullback-Leibler divergence of the clipped values from the quantised
          ones is least (S. Migacz, "8-bit inference with TensorRT", GTC 2017, as in TensorRT's and Model Optimizer's
          calibrators). It was made for activations with long tails, and may clip much where there are none.
        * `mse`: the ends at which the expected squared error of rounding and clipping is least, for values spread
          evenly over their bin.

        Args:
            percentile: share of the values that `percentile` keeps, in percent, above 50.
            bits: of the quantised values.
            symmetric: the quantiser is symmetric about zero: `2^(bits-1) - 1` steps of `extent` over that either way,
                zero point 0. Else it has `2^bits - 1` steps from `low` to `high`, and a rounded zero point.

        Raises:
            OptionError: no such method, or a percentile that keeps nothing.
        """
        if method not in get_args(Method):
            raise OptionError(
                f"There is no calibration method {method!r}.", "Only these are known.", ", ".join(get_args(Method))
            )
        if not 50 < percentile <= 100:
            raise OptionError(
                f"Percentile {percentile:g} cannot be used.",
                "It is the share of the activations that is not clipped, in percent.",
                "Above 50 and up to 100, such as 99.99.",
            )
        return {
            name: tensor.range(method, percentile=percentile, bits=bits, symmetric=symmetric)
            for name, tensor in self.tensors.items()
        }


def collect(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    images: Iterable[npt.NDArray[Any]],
    *,
    on_frame: Callable[[int], object] = lambda done: None,
) -> ActivationStatistics:
    """Run real frames through a model and keep what its tensors hold.

    Args:
        model: FP32, of one input; it is not changed. ONNX Runtime is given a copy that returns `tensors` too.
        tensors: names of activations, the input and the output among them if wished.
        images: network inputs, one inference each, taken once; an array may be reused for the next.
        on_frame: told how many are done, after each.

    Memory holds one frame's tensors at a time: of a ViT-B/16 at 352x352 pixels 125 MB for the inputs of all layers,
    300 MB with their outputs; and twice the model while it is copied.

    Raises:
        InputError: there is no frame, an activation is not finite, or ONNX Runtime cannot run the model.
    """
    scratch = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.int64)
    histograms = {name: _Histogram(scratch) for name in tensors}
    done = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _write_with_outputs(model, list(histograms), path)
        # Else ONNX Runtime's threads keep the cores that NumPy needs next.
        session = create_inference_session(path, SessionOptions(device="cpu", yields=True))
    (source,) = (each.name for each in session.get_inputs())
    fetched = [name for name in histograms if name != source]
    for image in images:
        values = {source: image}
        if fetched:  # ONNX Runtime takes none for all
            values.update(zip(fetched, session.run(fetched, {source: image}), strict=True))
        for name, histogram in histograms.items():
            if not histogram.add(values[name]):
                raise InputError(
                    f"The activation {name} is not finite on frame {done + 1}.",
                    "The FP32 model itself overflows there, or its weights hold NaN; no range can be given.",
                    "Look at that frame, run the FP32 model on it with mde run, or train or export the model again.",
                )
        done += 1
        on_frame(done)
    if not done:
        raise InputError(
            "There are no frames to calibrate INT8 with.",
            "Activation ranges come from real pictures; random ones would give wrong ones.",
            "Name a folder with pictures from the camera that the model is for.",
        )
    return ActivationStatistics(tensors={name: each.statistics() for name, each in histograms.items()}, frames=done)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How ranges from some frames fit what tensors hold on others."""

    clipped: Mapping[str, float]
    """By tensor: the share of observed values that its range clips, 0..1."""
    log2_range_ratio: Mapping[str, float]
    """By tensor: log2 of its extent on the calibration frames over that on the observed, each without the largest
    thousandth of magnitudes; 0 where both held zeros only, and `MOST_LOG2_RATIO` either way at most."""
    out_of_range_share: float
    """Share of tensors of whose observed values more than `OUT_OF_RANGE` lie beyond all calibrated ones."""

    @property
    def drift(self) -> float:
        """Mean of |octaves| over tensors."""
        return float(np.mean(np.abs(list(self.log2_range_ratio.values()))))

    @property
    def problem(self) -> str | None:
        """Why the calibration frames look like another domain than the observed ones; None where they do not."""
        if self.drift <= MOST_DRIFT and self.out_of_range_share <= MOST_OUT_OF_RANGE:
            return None
        return (
            "The calibration pictures are too few, or look like another domain than the reference pictures: extents of "
            f"activations differ by a factor of {2**self.drift:.2f} on average (in real scenes {2**MOST_DRIFT:.2f}), "
            f"and {self.out_of_range_share:.0%} of the tensors leave what was calibrated on more than "
            f"{OUT_OF_RANGE:.1%} of their values (at most {MOST_OUT_OF_RANGE:.0%})."
        )


def coverage(
    calibrated: ActivationStatistics, observed: ActivationStatistics, ranges: Ranges | None = None
) -> Coverage:
    """Compare what tensors held on calibration frames with what they hold on reference pictures.

    Args:
        calibrated: of the calibration frames.
        observed: of the reference pictures, with the same tensors.
        ranges: where the quantiser clips; nothing of what was calibrated where None. The verdict does not depend on
            them, since a method may clip on purpose.
    """
    seen, whole = observed.tensors, calibrated.ranges("max")
    beyond = {name: seen[name].share_outside(limits) for name, limits in whole.items()}
    return Coverage(
        clipped={name: seen[name].share_outside(limits) for name, limits in (ranges or whole).items()},
        log2_range_ratio={name: _log2_range_ratio(tensor, seen[name]) for name, tensor in calibrated.tensors.items()},
        out_of_range_share=float(np.mean([share > OUT_OF_RANGE for share in beyond.values()])),
    )


def _log2_range_ratio(calibrated: TensorStatistics, observed: TensorStatistics) -> float:
    first, second = calibrated.extent(EXTENT_SHARE), observed.extent(EXTENT_SHARE)
    if first == second:
        return 0.0
    if not first or not second:
        return math.copysign(MOST_LOG2_RATIO, first - second)
    return min(max(math.log2(first / second), -MOST_LOG2_RATIO), MOST_LOG2_RATIO)


def _write_with_outputs(model: onnx.ModelProto, tensors: Sequence[str], path: Path) -> None:
    import onnx

    there = {each.name for each in (*model.graph.input, *model.graph.output)}
    made = {name for node in model.graph.node for name in node.output}
    unknown = [name for name in tensors if name not in there | made]
    assert not unknown, f"the graph computes no {unknown}"
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in there)
    path.write_bytes(copy.SerializeToString())


class _Histogram:
    """Counts of one tensor's values, about zero, that grow with them.

    Args:
        scratch: `[CHUNK]` each, which histograms share.
    """

    def __init__(self, scratch: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.exponent = SMALLEST_EXPONENT
        """All magnitudes are below 2 to this power, and `HALF` bins go up to it."""
        self.minimum, self.maximum = math.inf, -math.inf
        self._scratch = scratch

    def add(self, values: npt.NDArray[Any]) -> bool:
        """Count the values; False if one is not finite."""
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
            # A power of two: no product is rounded, so a value's bin lies within its bin at any other width.
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
        """Merge bins in pairs until they go up to 2 to the power of `exponent`."""
        if exponent <= self.exponent:
            return
        doublings = min(exponent - self.exponent, HALF.bit_length())  # so many move all counts next to zero
        merged = np.zeros(BINS, np.int64)
        np.add.at(merged, (np.arange(-HALF, HALF) >> doublings) + HALF, self.counts)
        self.counts, self.exponent = merged, exponent

    def statistics(self) -> TensorStatistics:
        return TensorStatistics(counts=self.counts, width=self.width, minimum=self.minimum, maximum=self.maximum)


def _clipped(full: Range, extent: float) -> Range:
    """`full`, with magnitudes beyond `extent` cut off."""
    return Range(max(full.low, -extent), min(full.high, extent))


def _entropy_bins(magnitudes: npt.NDArray[np.int64], levels: int) -> int:
    """How many bins to keep so that `levels` levels lose the least information.

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
    running, filled = (np.append(0, np.cumsum(each)) for each in (counts, counts > 0))
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
    """The range of least expected squared error, each end found to 1 percent and down to 1/64 of what it was."""

    def best(ends: Floats) -> Floats:
        found: Floats = ends[np.argmin(_expected_error(tensor, ends, bits, symmetric))]
        return found

    whole = np.array([full.low, full.high])
    # Both ends together first, since one alone gains little while the other is far out; then each in turn.
    found = whole
    for shares in (SHARES, NEARBY):
        extents = np.abs(found).max() * shares[:, None]
        found = best(np.clip(whole, -extents, extents))
    if not symmetric and whole.all():
        for shares in (SHARES, SHARES, NEARBY):
            for end in (0, 1):
                ends = np.tile(found, (1 + len(shares), 1))  # the one found first, so that no step makes it worse
                ends[1:, end] = (whole if shares is SHARES else found)[end] * shares
                found = best(np.clip(ends, *whole))
    return Range(float(found[0]), float(found[1]))


def _expected_error(tensor: TensorStatistics, ends: Floats, bits: int, symmetric: bool) -> Floats:
    """Sum of squared errors of quantised values, for values spread evenly over their bin.

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
    # Multiplied out, since NumPy's third power takes fifty times as long.
    integral = steps * (step**3 / 12) + (rest * rest * rest + beyond * beyond * beyond) / 3
    error: Floats = np.diff(integral, axis=1) @ counts[used] / tensor.width
    return error
