"""Scan of a data set: statistics of images and depth, from which `data.lint.problems` are derived."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.config import SizeHW
from mirrordepth_edge.data.augment import resize_depth
from mirrordepth_edge.data.lint.registration import Registration, Verdict, edge_correlations, judge_registration
from mirrordepth_edge.data.sample import DepthDataset, FilePairs, Mapped, Sample, Selected
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.draw import scale_bar, side_by_side, stacked, titled
from mirrordepth_edge.imaging.images import read_depth_png, read_image
from mirrordepth_edge.imaging.postprocess import colourise
from mirrordepth_edge.imaging.preprocess import Frame, resize_frame

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
BIN_EDGES_M = tuple(
    round(step * 10.0**power, 3) for power in range(-2, 5) for step in (1, 1.5, 2, 3, 5, 7)
)  # round numbers, about evenly spaced on a log scale
LEVELS = 1 << 16
MARKER = LEVELS - 1
"""Largest 16-bit value, which some cameras write for pixels without a measurement."""
FLOAT_UNITS_PER_METRE = 1000.0
"""Resolution of the histogram for depth that is stored as floating point."""
STRIDE = 2
"""Depth statistics use every second row and column."""
REGISTRATION_PICTURES = 64
SHEET_PICTURES, SHEET_COLUMNS, SHEET_WIDTH_PX = 12, 3, 240
NO_DEPTH_RGB = (220, 50, 47)
"""Red does not occur in the colour map."""
BLACK, ONE_COLOUR = 6.0, 2.0
"""Limits of the mean and standard deviation of each channel, of 255."""
BAR_CHARACTERS = 40
MAX_REASONS = 10
IN_WORDS: dict[Verdict, str] = {
    "registered": "depth is registered to the images",
    "unregistered": "depth is not registered to the images",
    "nowhere": "depth does not match the images",
    "unclear": "undecided, too few scenes or edges",
}
COARSE_M = 0.005
MIN_STEPS = 16


@dataclass(frozen=True, kw_only=True)
class UnusableImage:
    """An image that cannot be used, and why."""

    name: str
    reason: str
    swapped: bool = False
    """Width and height of its depth are swapped."""


@dataclass(frozen=True, kw_only=True)
class DepthStatistics:
    """Statistics of measured depth over a data set, from every second row and column."""

    units_per_metre: float | None
    """Unit of the files; None if they hold metres."""
    percentiles_m: dict[int, float]
    histogram: tuple[tuple[float, float, float], ...]
    """Lower and upper limit, metres, and share of measured pixels; the first and last bin are open."""
    largest_m: float
    """99.9th percentile."""
    share_at_largest: float
    """Share of measured pixels with exactly that depth."""
    marker_share: float
    """Share of all pixels with the largest 16-bit value; the other statistics treat them as not measured."""
    values: float
    """Number of distinct depth values per image, median."""
    step_m: float | None
    """Quantisation step, if it is coarse and uniform in most images."""


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """Result of the scan of a data set."""

    pictures: int
    looked_at: int
    sizes: tuple[tuple[SizeHW, int], ...]
    """Height and width, and number of images of that size; most common first."""
    unusable: tuple[UnusableImage, ...]
    without_depth: tuple[str, ...]
    blank: tuple[str, ...]
    """Images that are black or of a single colour."""
    copies: tuple[tuple[str, str], ...]
    """Images identical to an earlier one, and that one."""
    valid_share: float
    """Share of pixels with depth, mean over images."""
    least_valid: tuple[str, float] | None
    """Image with the smallest such share."""
    depths: DepthStatistics | None
    """None if no image has depth."""
    registration: Registration


def spread(length: int, count: int | None) -> tuple[int, ...]:
    """Choose at most `count` of `length` indices, evenly spaced from first to last; all for None."""
    if count is None or count >= length:
        return tuple(range(length))
    return tuple(round(position) for position in np.linspace(0, length - 1, count).tolist())


def check_dataset(
    dataset: DepthDataset,
    indices: Sequence[int] | None = None,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> DatasetReport:
    """Scan a data set image by image; none is kept in memory.

    Args:
        dataset: the data set.
        indices: samples to scan; None for all.
        track: iterates over the indices, for example with a progress bar.
    """
    chosen = range(len(dataset)) if indices is None else indices
    tally = _Scan(_units_per_metre(dataset))
    compared = {chosen[position] for position in spread(len(chosen), REGISTRATION_PICTURES)}
    for index in track(chosen):
        sample = _read(dataset, index)
        if isinstance(sample, UnusableImage):
            tally.unusable.append(sample)
        else:
            tally.add(sample, compare_edges=index in compared)
    return DatasetReport(
        pictures=len(dataset),
        looked_at=len(chosen),
        sizes=tuple(tally.sizes.most_common()),
        unusable=tuple(tally.unusable),
        without_depth=tuple(tally.without_depth),
        blank=tuple(tally.blank),
        copies=tuple(tally.copies),
        valid_share=float(np.mean([share for _, share in tally.valid_shares])) if tally.valid_shares else 0.0,
        least_valid=min(tally.valid_shares, key=lambda named: named[1], default=None),
        depths=tally.depths(),
        registration=judge_registration(tally.correlations),
    )


def report_lines(report: DatasetReport) -> list[str]:
    """Format a report: unusable files (the first ten), sizes, distribution of depth, registration."""
    lines = [f"{image.name}: {image.reason}" for image in report.unusable[:MAX_REASONS]]
    if (more := len(report.unusable) - MAX_REASONS) > 0:
        lines.append(f"and {more} more; --json check.json lists all")
    lines += [f"{f'{width}x{height}':>14}  {pictures} images" for (height, width), pictures in report.sizes]
    if report.least_valid is not None:
        name, share = report.least_valid
        lines.append(
            f"    with depth  {report.valid_share:.1%} of the pixels on average, minimum {share:.1%} in {name}"
        )
    if (depths := report.depths) is None:
        return lines
    most = max(share for _, _, share in depths.histogram)
    for low_m, high_m, share in depths.histogram:
        bar = "█" * round(BAR_CHARACTERS * share / most)
        lines.append(f"{f'{low_m:g} to {high_m:g} m':>14}  {share:6.1%} {bar}".rstrip())
    percentiles = [f"{percent} %: {depth_m:.2f} m" for percent, depth_m in depths.percentiles_m.items()]
    lines.append(f"   percentiles  {', '.join(percentiles)}")
    registration = report.registration
    lines.append(
        f"  registration  {IN_WORDS[registration.verdict]}: edge correlation {registration.correlation_as_is:.2f} "
        f"in {registration.pictures} images of about {registration.scenes:.0f} scenes"
    )
    return lines


def contact_sheet(dataset: DepthDataset, indices: Sequence[int], report: DatasetReport) -> Frame | None:
    """Draw up to twelve images beside their depth, with a colour bar in metres.

    Colours span the 1st to the 99th percentile of depth; pixels without depth are red. Unreadable images are
    left out.

    Args:
        dataset: the data set.
        indices: samples to choose from.
        report: result of `check_dataset`.

    Returns:
        uint8 RGB `[H, W, 3]`; None if no image can be read or none has depth.
    """
    if report.depths is None:
        return None
    near_m, far_m = report.depths.percentiles_m[1], report.depths.percentiles_m[99]
    limits_m = (near_m, far_m) if near_m < far_m else (0.0, far_m)
    samples = (_read(dataset, indices[position]) for position in spread(len(indices), SHEET_PICTURES))
    cells = [_cell(sample, limits_m) for sample in samples if not isinstance(sample, UnusableImage)]
    if not cells:
        return None
    sheet = stacked(
        [side_by_side(cells[first : first + SHEET_COLUMNS]) for first in range(0, len(cells), SHEET_COLUMNS)]
    )
    return titled(side_by_side([sheet, scale_bar(sheet.shape[0], limits_m)]), "image and depth; red: no depth")


class _Scan:
    """Accumulates statistics over images."""

    def __init__(self, units_per_metre: float | None) -> None:
        self.stored_units = units_per_metre
        self.units = units_per_metre or FLOAT_UNITS_PER_METRE
        self.counts = np.zeros(LEVELS, np.int64)
        self.sizes: Counter[SizeHW] = Counter()
        self.unusable: list[UnusableImage] = []
        self.without_depth: list[str] = []
        self.blank: list[str] = []
        self.copies: list[tuple[str, str]] = []
        self.valid_shares: list[tuple[str, float]] = []
        self.values: list[int] = []
        self.steps: list[float | None] = []
        self.correlations: list[npt.NDArray[np.float32]] = []
        self._seen: dict[bytes, str] = {}

    def add(self, sample: Sample, *, compare_edges: bool) -> None:
        name, frame, depth_m = sample
        self.sizes[frame.shape[0], frame.shape[1]] += 1
        self._add_picture(name, frame)
        if self.stored_units is not None:
            farthest_m = np.float32((MARKER - 0.5) / self.units)
            depth_m = np.where(depth_m < farthest_m, depth_m, np.float32(0))
            self.counts[MARKER] += np.count_nonzero(sample.depth_m[::STRIDE, ::STRIDE] >= farthest_m)
        share = np.count_nonzero(depth_m) / depth_m.size
        self.valid_shares.append((name, share))
        if not share:
            self.without_depth.append(name)
            return
        levels = np.rint(depth_m[::STRIDE, ::STRIDE] * np.float32(self.units)).clip(0, MARKER - 1).astype(np.uint16)
        counts = np.bincount(levels.ravel(), minlength=LEVELS)
        self.counts += counts
        values = np.flatnonzero(counts[1:])
        self.values.append(len(values))
        self.steps.append(_step_m(values, self.units))
        if compare_edges and (correlations := edge_correlations(frame, depth_m)) is not None:
            self.correlations.append(correlations)

    def depths(self) -> DepthStatistics | None:
        measured = self.counts.copy()
        measured[[0, MARKER]] = 0
        total = int(measured.sum())
        if not total:
            return None
        cumulative = measured.cumsum()
        largest = int(np.searchsorted(cumulative, 0.999 * total))
        steps = [step for step in self.steps if step is not None]
        return DepthStatistics(
            units_per_metre=self.stored_units,
            percentiles_m={p: int(np.searchsorted(cumulative, p / 100 * total)) / self.units for p in PERCENTILES},
            histogram=_histogram(measured / total, self.units),
            largest_m=largest / self.units,
            share_at_largest=float(measured[largest] / total),
            marker_share=float(self.counts[MARKER] / self.counts.sum()),
            values=float(np.median(self.values)),
            step_m=float(np.median(steps)) if 2 * len(steps) > len(self.steps) else None,
        )

    def _add_picture(self, name: str, frame: Frame) -> None:
        means, deviations = cv2.meanStdDev(frame)
        if means.max() < BLACK or deviations.max() < ONE_COLOUR:
            self.blank.append(name)
            return  # blank images are not reported as copies of each other
        first = self._seen.setdefault(hashlib.sha256(frame.tobytes()).digest(), name)
        if first != name:
            self.copies.append((name, first))


def _read(dataset: DepthDataset, index: int) -> Sample | UnusableImage:
    try:
        sample = dataset[index]
    except InputError as error:
        reason = f"{error.what} {error.why}"
        return UnusableImage(name=dataset.name(index), reason=reason, swapped=_sides_swapped(dataset, index))
    size_hw = sample.frame.shape[:2]
    if size_hw != sample.depth_m.shape:
        reason = f"The image is {size_hw}, its depth {sample.depth_m.shape} (rows, columns)."
        return UnusableImage(name=sample.name, reason=reason, swapped=size_hw == sample.depth_m.shape[::-1])
    if not (np.isfinite(sample.depth_m).all() and sample.depth_m.min(initial=0) >= 0):
        return UnusableImage(name=sample.name, reason="Its depth has negative, infinite or NaN values.")
    return sample


def _sides_swapped(dataset: DepthDataset, index: int) -> bool:
    """Whether an unreadable pair has depth with width and height swapped."""
    files, index = _innermost(dataset, index)
    if not isinstance(files, FilePairs):
        return False
    image, depth = files.pairs[index]
    try:
        size_hw, depth_hw = read_image(image).shape[:2], read_depth_png(depth, 1.0).shape
    except InputError:
        return False
    return size_hw != depth_hw and size_hw == depth_hw[::-1]


def _units_per_metre(dataset: DepthDataset) -> float | None:
    files, _ = _innermost(dataset, 0) if len(dataset) else (dataset, 0)
    return files.units_per_metre if isinstance(files, FilePairs) else None


def _innermost(dataset: DepthDataset, index: int) -> tuple[DepthDataset, int]:
    """The underlying data set of nested ones, and the index of a sample in it."""
    while isinstance(dataset, (Mapped, Selected)):
        if isinstance(dataset, Selected):
            index = dataset.indices[index]
        dataset = dataset.of
    return dataset, index


def _histogram(shares: npt.NDArray[np.float64], units: float) -> tuple[tuple[float, float, float], ...]:
    """Bins from the first to the last with at least a thousandth of the pixels; outliers go into the end bins."""
    which = np.searchsorted(BIN_EDGES_M, np.arange(LEVELS) / units, side="right").clip(1, len(BIN_EDGES_M) - 1) - 1
    sums = np.bincount(which, weights=shares, minlength=len(BIN_EDGES_M) - 1)
    filled = np.flatnonzero(sums >= 1e-3)
    first, last = int(filled[0]), int(filled[-1])
    sums[first], sums[last] = sums[: first + 1].sum(), sums[last:].sum()
    return tuple((BIN_EDGES_M[i], BIN_EDGES_M[i + 1], float(sums[i])) for i in range(first, last + 1))


def _step_m(values: npt.NDArray[np.intp], units: float) -> float | None:
    """Quantisation step of an image's depth in metres, if it is coarse and uniform; else None.

    Steps of a structured-light camera grow with the square of distance, which is normal. Uniform steps come from
    storing depth in too few bits.

    Args:
        values: distinct depth values, ascending.
        units: units per metre of `values`.
    """
    if len(values) < MIN_STEPS:
        return None
    gaps = np.diff(values)
    step = float(np.percentile(gaps, 10, method="lower"))
    # A gap is a multiple of the step if values are missing, and off by one unit by rounding.
    off = np.abs(gaps - np.rint(gaps / step) * step)
    same = np.mean(off <= (1 + 0.02 * gaps if step >= 5 else 0)) >= 0.95
    return step / units if same and step / units >= COARSE_M else None


def _cell(sample: Sample, limits_m: tuple[float, float]) -> Frame:
    """An image beside its depth, titled with its name."""
    height, width = sample.depth_m.shape
    size_hw = max(1, round(height * SHEET_WIDTH_PX / width)), SHEET_WIDTH_PX
    depth_m = resize_depth(sample.depth_m, size_hw)
    colours = colourise(depth_m, limits_m)
    colours[depth_m == 0] = NO_DEPTH_RGB
    pair = side_by_side([resize_frame(sample.frame, size_hw), colours], gap=2)
    return titled(pair, sample.name.encode("ascii", "replace").decode())
