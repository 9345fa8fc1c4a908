"""What a data set holds, read once, picture by picture: the facts from which `data.mistakes` draws conclusions."""

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
from mirrordepth_edge.imaging.pictures import read_depth_png, read_picture
from mirrordepth_edge.imaging.postprocess import colourise
from mirrordepth_edge.imaging.preprocess import Frame, resize_frame

DepthMap = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
BIN_EDGES_M = tuple(
    round(step * 10.0**power, 3) for power in range(-2, 5) for step in (1, 1.5, 2, 3, 5, 7)
)  # round numbers, about evenly spaced in log
LEVELS = 1 << 16
MARKER = LEVELS - 1
"""The largest value of 16 bits: never a measurement, and with some cameras the mark of none."""
FLOAT_UNITS_PER_METRE = 1000.0
"""Depth that is not stored in whole numbers is counted in millimetres."""
STRIDE = 2
"""Every so many rows and columns are counted: neighbours say the same."""
REGISTRATION_PICTURES = 64
SHEET_PICTURES, SHEET_COLUMNS, SHEET_WIDTH_PX = 12, 3, 240
NO_DEPTH_RGB = (220, 50, 47)
"""The scale of colours goes through grey and holds no red."""
BLACK, ONE_COLOUR = 6.0, 2.0
"""Of 255: largest mean and largest standard deviation of a channel."""
BAR_CHARACTERS = 40
MAX_REASONS = 10
IN_WORDS: dict[Verdict, str] = {
    "registered": "depth lies on the pictures",
    "unregistered": "depth does not lie on the pictures",
    "nowhere": "depth does not go with the pictures",
    "unclear": "too few scenes or edges to tell",
}
COARSE_M = 0.005
MIN_STEPS = 16


@dataclass(frozen=True, kw_only=True)
class UnusableImage:
    """A picture that cannot be used, and why."""

    name: str
    reason: str
    swapped: bool = False
    """Its depth has the picture's width as height and its height as width."""


@dataclass(frozen=True, kw_only=True)
class DepthStatistics:
    """All measured depth of a data set; every second row and column of it."""

    units_per_metre: float | None
    """Of the files; None where they hold metres."""
    percentiles_m: dict[int, float]
    histogram: tuple[tuple[float, float, float], ...]
    """From and to, in metres, and the share of measured pixels between; the ends are open."""
    largest_m: float
    """Leaving a thousandth of the pixels out."""
    share_at_largest: float
    """Of measured pixels that have exactly that depth."""
    marker_share: float
    """Of all pixels, that have the largest value of 16 bits; they count as not measured everywhere else."""
    values: float
    """How many different ones a picture has, in the median."""
    step_m: float | None
    """Between one value and the next, where that is coarse and the same everywhere in most pictures."""


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """What was found in a data set."""

    pictures: int
    looked_at: int
    sizes: tuple[tuple[SizeHW, int], ...]
    """Rows and columns, and how many pictures have them; the most common first."""
    unusable: tuple[UnusableImage, ...]
    without_depth: tuple[str, ...]
    blank: tuple[str, ...]
    """Black, or of a single colour."""
    copies: tuple[tuple[str, str], ...]
    """Pictures that are the same, pixel by pixel, as another before them, and which."""
    valid_share: float
    """Of a picture's pixels that have depth, in the mean."""
    least_valid: tuple[str, float] | None
    """The picture with the smallest such share."""
    depths: DepthStatistics | None
    """None where nothing was measured in any picture."""
    registration: Registration


def spread(length: int, count: int | None) -> tuple[int, ...]:
    """At most `count` positions of `length`, evenly from the first to the last; all for None."""
    if count is None or count >= length:
        return tuple(range(length))
    return tuple(round(position) for position in np.linspace(0, length - 1, count).tolist())


def check_dataset(
    dataset: DepthDataset,
    indices: Sequence[int] | None = None,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> DatasetReport:
    """Read pictures one after the other and report on them; none is kept in memory.

    Args:
        indices: which to look at; all by default.
        track: hands the indices on one by one, and may show how far it is.
    """
    chosen = range(len(dataset)) if indices is None else indices
    units = _units_per_metre(dataset)
    tally = _Scan(units)
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
    """A report in lines of text: sizes, how depth is distributed, and why files cannot be used (the first ten)."""
    lines = [f"{picture.name}: {picture.reason}" for picture in report.unusable[:MAX_REASONS]]
    if (more := len(report.unusable) - MAX_REASONS) > 0:
        lines.append(f"and {more} more; --json check.json lists them all")
    lines += [f"{f'{width}x{height}':>14}  {pictures} pictures" for (height, width), pictures in report.sizes]
    if report.least_valid is not None:
        name, share = report.least_valid
        lines.append(f"    with depth  {report.valid_share:.1%} of the pixels in the mean, {share:.1%} in {name}")
    if (depths := report.depths) is None:
        return lines
    most = max(share for _, _, share in depths.histogram)
    for low_m, high_m, share in depths.histogram:
        bar = "█" * round(BAR_CHARACTERS * share / most)
        lines.append(f"{f'{low_m:g} to {high_m:g} m':>14}  {share:6.1%} {bar}".rstrip())
    percentiles = [f"{percent} %: {depth_m:.2f} m" for percent, depth_m in depths.percentiles_m.items()]
    lines.append(f"   percentiles  {', '.join(percentiles)}")
    found = report.registration
    lines.append(
        f"  registration  {IN_WORDS[found.verdict]}: edges of depth and pictures correlate "
        f"{found.correlation_as_is:.2f} in {found.pictures} pictures of about {found.scenes:.0f} scenes"
    )
    return lines


def contact_sheet(dataset: DepthDataset, indices: Sequence[int], report: DatasetReport) -> Frame | None:
    """Photo beside depth for up to twelve of the pictures, with the scale of the colours in metres.

    The colours run from the 1st to the 99th percentile; pixels without depth are red. Pictures that
    cannot be read are left out.

    Args:
        indices: of the pictures to choose from.
        report: of `check_dataset`.

    Returns:
        uint8 RGB `[H, W, 3]`; None where no picture can be read or none has depth.
    """
    if report.depths is None:
        return None
    near_m, far_m = report.depths.percentiles_m[1], report.depths.percentiles_m[99]
    limits_m = (near_m, far_m) if near_m < far_m else (0.0, far_m)
    samples = (_read(dataset, indices[position]) for position in spread(len(indices), SHEET_PICTURES))
    cells = [_cell(sample, limits_m) for sample in samples if not isinstance(sample, UnusableImage)]
    if not cells:
        return None
    rows = [side_by_side(cells[start : start + SHEET_COLUMNS]) for start in range(0, len(cells), SHEET_COLUMNS)]
    sheet = stacked(rows)
    return titled(side_by_side([sheet, scale_bar(sheet.shape[0], limits_m)]), "picture and depth; red: no depth")


class _Scan:
    """What is kept of the pictures gone by."""

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
        self._add_depth(depth_m[::STRIDE, ::STRIDE])
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
            return  # of which there may be many alike
        first = self._seen.setdefault(hashlib.sha256(frame.tobytes()).digest(), name)
        if first != name:
            self.copies.append((name, first))

    def _add_depth(self, depth_m: DepthMap) -> None:
        levels = np.rint(depth_m * np.float32(self.units)).clip(0, MARKER - 1).astype(np.uint16)
        counts = np.bincount(levels.ravel(), minlength=LEVELS)
        self.counts += counts
        values = np.flatnonzero(counts[1:])
        self.values.append(len(values))
        self.steps.append(_step_m(values, self.units))


def _read(dataset: DepthDataset, index: int) -> Sample | UnusableImage:
    try:
        sample = dataset[index]
    except InputError as error:
        reason = f"{error.what} {error.why}"
        return UnusableImage(name=dataset.name(index), reason=reason, swapped=_sides_swapped(dataset, index))
    size_hw = sample.frame.shape[:2]
    if size_hw != sample.depth_m.shape:
        reason = f"The picture is {size_hw}, its depth {sample.depth_m.shape} (rows, columns)."
        return UnusableImage(name=sample.name, reason=reason, swapped=size_hw == sample.depth_m.shape[::-1])
    if not (np.isfinite(sample.depth_m).all() and sample.depth_m.min(initial=0) >= 0):
        return UnusableImage(name=sample.name, reason="Some of its depth is negative, infinite or not a number.")
    return sample


def _sides_swapped(dataset: DepthDataset, index: int) -> bool:
    """Whether a pair that cannot be read is one whose depth lies on its side."""
    files, index = _innermost(dataset, index)
    if not isinstance(files, FilePairs):
        return False
    picture, depth = files.pairs[index]
    try:
        size_hw, depth_hw = read_picture(picture).shape[:2], read_depth_png(depth, 1.0).shape
    except InputError:
        return False
    return size_hw != depth_hw and size_hw == depth_hw[::-1]


def _units_per_metre(dataset: DepthDataset) -> float | None:
    files, _ = _innermost(dataset, 0) if len(dataset) else (dataset, 0)
    return files.units_per_metre if isinstance(files, FilePairs) else None


def _innermost(dataset: DepthDataset, index: int) -> tuple[DepthDataset, int]:
    """The data set that reads files, and where in it a sample is."""
    while isinstance(dataset, (Mapped, Selected)):
        if isinstance(dataset, Selected):
            index = dataset.indices[index]
        dataset = dataset.of
    return dataset, index


def _histogram(shares: npt.NDArray[np.float64], units: float) -> tuple[tuple[float, float, float], ...]:
    """Bins from the first to the last that holds a thousandth of the pixels; those beyond go into the ends."""
    which = np.searchsorted(BIN_EDGES_M, np.arange(LEVELS) / units, side="right").clip(1, len(BIN_EDGES_M) - 1) - 1
    sums = np.bincount(which, weights=shares, minlength=len(BIN_EDGES_M) - 1)
    filled = np.flatnonzero(sums >= 1e-3)
    first, last = int(filled[0]), int(filled[-1])
    sums[first], sums[last] = sums[: first + 1].sum(), sums[last:].sum()
    return tuple((BIN_EDGES_M[i], BIN_EDGES_M[i + 1], float(sums[i])) for i in range(first, last + 1))


def _step_m(values: npt.NDArray[np.intp], units: float) -> float | None:
    """The step between a picture's values, where it is coarse and the same near and far.

    A structured-light camera's steps grow with the square of distance and are its own; equal ones
    come from storing depth in too few bits.

    Args:
        values: the different ones, rising, in `units` a metre.
    """
    if len(values) < MIN_STEPS:
        return None
    gaps = np.diff(values)
    step = float(np.percentile(gaps, 10, method="lower"))
    # Where values are missing, gaps are several steps; rounding to whole units makes them differ by one.
    off = np.abs(gaps - np.rint(gaps / step) * step)
    same = np.mean(off <= (1 + 0.02 * gaps if step >= 5 else 0)) >= 0.95
    return step / units if same and step / units >= COARSE_M else None


def _cell(sample: Sample, limits_m: tuple[float, float]) -> Frame:
    """One picture beside its depth, with its name."""
    height, width = sample.depth_m.shape
    size_hw = max(1, round(height * SHEET_WIDTH_PX / width)), SHEET_WIDTH_PX
    depth_m = resize_depth(sample.depth_m, size_hw)
    colours = colourise(depth_m, limits_m)
    colours[depth_m == 0] = NO_DEPTH_RGB
    pair = side_by_side([resize_frame(sample.frame, size_hw), colours], gap=2)
    return titled(pair, sample.name.encode("ascii", "replace").decode())
