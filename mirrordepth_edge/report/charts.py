"""Layout of charts. The template turns them into SVG and sets the colours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.imaging.draw import round_ticks

# Small, so that labels stay legible on a phone, where a chart is as wide as the screen.
WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 68, 12, 12, 46
COLOURS = 6
"""Number of colours of the page; further series repeat them."""

SCALE_STEPS = 24
MAX_DIGIT_WIDTH = 7.0
LABEL_POSITIONS: tuple[tuple[float, float, Literal["start", "middle", "end"]], ...] = (
    (-5, 14, "end"),
    (5, -5, "start"),
    (-5, -5, "end"),
    (5, 14, "start"),
    (0, 17, "middle"),
    (0, -9, "middle"),
    (9, 4, "start"),
    (-9, 4, "end"),
)
"""Positions of a label relative to its dot, best first: x, y and text anchor. A Pareto front falls to the right, so the
space below it to the left is free."""

Values = Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A value on an axis and its position, in the units of the drawing."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A path and its style: `line`, `area`, `dots`, `points`, `beyond`, `bars` or `rule`."""

    path: str
    look: str
    series: int | None = None
    """Index of the colour; None is grey."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """Text beside a dot and its position, in the units of the drawing."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"]
    """The end of the text that is at `x`."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing of `WIDTH` by `HEIGHT` units, with axes."""

    summary: str
    """Alternative text."""
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    legend: tuple[str, ...] = ()
    """Names of the series in the order of their colours; empty for a single one."""
    labels: tuple[Label, ...] = ()
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A colour bar with ticks."""

    label: str
    colours: tuple[str, ...]
    """CSS colours, from 0."""
    ticks: tuple[Tick, ...]
    """Positions in percent of the length of the bar."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A segment of a stacked bar."""

    name: str
    value: float
    share: float
    """In percent of its bar."""
    width: float
    """In percent of the longest bar."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A stacked bar."""

    label: str
    parts: tuple[Part, ...]
    total: float
    start: float = 0.0
    """Offset in percent of the longest bar."""


@dataclass(frozen=True, kw_only=True)
class _Axes:
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 2)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 2)

    def ticks(self) -> tuple[tuple[Tick, ...], tuple[Tick, ...]]:
        x = tuple(Tick(at=self.x(value), label=f"{value:g}") for value in round_ticks(*self.x_range, 6))
        y = tuple(Tick(at=self.y(value), label=f"{value:g}") for value in round_ticks(*self.y_range, 5))
        return x, y

    def line(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{self.x(x)},{self.y(y)}" for x, y in points)

    def dots(self, points: Sequence[tuple[float, float]]) -> str:
        # Lines of zero length: their round caps are the dots.
        return "".join(f"M{self.x(x)},{self.y(y)}h0" for x, y in points)

    def points(self, points: Sequence[tuple[float, float]]) -> str:
        positions = dict.fromkeys((round(2 * self.x(x)) / 2, round(2 * self.y(y)) / 2) for x, y in points)
        return "".join(f"M{x:g},{y:g}h0" for x, y in positions)


def histogram(series: Mapping[str, Values], x_label: str, y_label: str, bins: int = 24) -> Chart:
    """Draw a histogram of several series of values (0 or more) with common bins.

    The last bin holds all values above the 99th percentile, so that one outlier does not flatten the rest.
    """
    everything = np.concatenate([np.asarray(values, np.float64) for values in series.values()])
    high = above(float(np.percentile(everything, 99)))
    edges = np.linspace(0, high, bins + 1)
    counts = {name: np.histogram(np.minimum(values, high), edges)[0] for name, values in series.items()}
    axes = _Axes(x_range=(0, high), y_range=(0, above(max(float(count.max()) for count in counts.values()))))
    marks = []
    for index, heights in enumerate(counts.values()):
        steps = [(float(edges[0]), 0.0)]
        for k, height in enumerate(heights.tolist()):
            steps += [(float(edges[k]), height), (float(edges[k + 1]), height)]
        marks.append(Mark(path=axes.line([*steps, (float(edges[-1]), 0.0)]), look="area", series=index % COLOURS))
    last = f" (last bin: all above {high:g})" if everything.max() > high else ""
    return _chart(axes, marks, series, x_label + last, y_label, f"Histogram of {x_label}")


def curves(
    series: Mapping[str, Sequence[tuple[float, float | None]]],
    x_range: tuple[float, float],
    x_label: str,
    y_label: str,
    bars: Sequence[tuple[float, float, float]] = (),
) -> Chart:
    """Draw a line with dots for each series; values of None are skipped.

    Args:
        bars: (start, end, height) of grey bars behind the lines, scaled so that the tallest is half the chart.
    """
    points = {name: [(x, y) for x, y in values if y is not None] for name, values in series.items()}
    heights = [y for pairs in points.values() for _, y in pairs]
    low, high = min([0.0, *heights]), max([0.0, *heights])
    axes = _Axes(x_range=x_range, y_range=(-above(-low) if low < 0 else 0.0, above(high) if high > 0 else 0.0))
    if axes.y_range[0] == axes.y_range[1]:
        axes = _Axes(x_range=x_range, y_range=(0, 1))
    marks, floor = [], HEIGHT - BOTTOM
    tallest = max((height for _, _, height in bars), default=0)
    if tallest > 0:
        half = (HEIGHT - TOP - BOTTOM) / 2
        path = "".join(
            f"M{axes.x(start) + 1:g},{floor}V{floor - half * height / tallest:.2f}H{axes.x(end) - 1:g}V{floor}Z"
            for start, end, height in bars
        )
        marks.append(Mark(path=path, look="bars"))
    if low < 0:
        marks.append(Mark(path=axes.line([(x_range[0], 0), (x_range[1], 0)]), look="rule"))
    for index, pairs in enumerate(points.values()):
        if pairs:
            marks.append(Mark(path=axes.line(pairs), look="line", series=index % COLOURS))
            marks.append(Mark(path=axes.dots(pairs), look="dots", series=index % COLOURS))
    return _chart(axes, marks, series, x_label, y_label, f"{y_label} against {x_label}")


def differences(xs: Values, series: Mapping[str, Values], x_label: str, y_label: str) -> Chart:
    """Draw differences against values as dots, with a line at zero.

    Args:
        series: differences by name, as many as `xs`. Colours start with the second, because the first one belongs to
            the reference.
    """
    largest = max((abs(value) for values in series.values() for value in values), default=0.0)
    half = above(largest) if largest > 0 else 1.0
    axes = _Axes(x_range=(0, above(max(xs))), y_range=(-half, half))
    marks = [Mark(path=axes.line([(0, 0), (axes.x_range[1], 0)]), look="rule")]
    for index, values in enumerate(series.values(), 1):
        dots = axes.dots(list(zip(xs, values, strict=True)))
        marks.append(Mark(path=dots, look="dots", series=index % COLOURS))
    return _chart(axes, marks, ["", *series], x_label, y_label, f"{y_label} against {x_label}")


def scatter(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> Chart:
    """Draw values, such as frame times, against a number (0 or more) as small dots.

    The value axis may not start at 0. It ends at the maximum, but at most at twice the distance of the highest 99th
    percentile from the minimum; values above are drawn at the top and counted in the label. Dots less than half a unit
    apart are merged to limit the size of the page.

    Args:
        series: non-empty pairs by name.
    """
    values = {name: np.array([y for _, y in pairs], np.float64) for name, pairs in series.items()}
    low, high = (pick(pick(ys) for ys in values.values()) for pick in (min, max))
    top = min(high, low + 2 * (max(float(np.percentile(ys, 99)) for ys in values.values()) - low))
    y_range, farthest = _around(low, top), max(x for pairs in series.values() for x, _ in pairs)
    axes = _Axes(x_range=(0, above(farthest)), y_range=y_range)
    marks, beyond = [], 0
    for index, pairs in enumerate(series.values()):
        inside = [pair for pair in pairs if pair[1] <= top]
        marks.append(Mark(path=axes.points(inside), look="points", series=index % COLOURS))
        if outside := [x for x, y in pairs if y > top]:
            carets = "".join(f"M{axes.x(x) - 3:g},{TOP + 5}l3,-5l3,5" for x in outside)
            marks.append(Mark(path=carets, look="beyond", series=index % COLOURS))
            beyond += len(outside)
    total = sum(map(len, series.values()))
    note = f" (at the top: {beyond} of {total}, up to {high:.4g})" if beyond else ""
    return _chart(axes, marks, series, x_label + note, y_label, f"{y_label} against {x_label}")


def front(
    series: Mapping[str, Sequence[tuple[str, float, float]]],
    best: Sequence[tuple[float, float]],
    x_label: str,
    y_label: str,
    top: float = float("inf"),
) -> Chart:
    """Draw two costs against each other, the smaller the better, with the Pareto front.

    Axes need not begin at 0. Dots above `top` are drawn at the upper edge and counted below the chart. Labels that
    would overlap others are left out, from the last series on.

    Args:
        series: (label, x, y) of each dot, x and y 0 or more, by the name of the series; at least one dot.
        best: the dots on the front; a staircase connects them.
        top: y above which the exact value does not matter, above 0.
    """
    dots = [dot for group in series.values() for dot in group]
    inside = [(x, y) for _, x, y in dots if y <= top]
    above = [y for *_, y in dots if y > top]
    axes = _Axes(
        x_range=_around(min(x for _, x, _ in dots), max(x for _, x, _ in dots)),
        y_range=_around(min((y for _, y in inside), default=top), max((y for _, y in inside), default=top)),
    )
    steps = _steps([(x, y) for x, y in best if y <= top])
    marks = [Mark(path=axes.line(steps), look="line", series=0)] if steps else []
    for index, group in enumerate(series.values()):
        marks += _dots(axes, group, top, index % COLOURS)
    note = f" (at the top: {len(above)} of {len(dots)}, up to {max(above):.4g})" if above else ""
    chart = _chart(axes, marks, series, x_label + note, y_label, f"{y_label} against {x_label}")
    positions = [(text, axes.x(x), axes.y(y) if y <= top else TOP + 3.0) for text, x, y in dots]
    return replace(chart, labels=_place_labels(positions, [(axes.x(x), axes.y(y)) for x, y in steps]))


def _dots(axes: _Axes, dots: Sequence[tuple[str, float, float]], top: float, colour: int) -> Iterator[Mark]:
    """Dots up to `top`, and carets at the upper edge for those above it."""
    if inside := [(x, y) for _, x, y in dots if y <= top]:
        yield Mark(path=axes.dots(inside), look="dots", series=colour)
    if above := [x for _, x, y in dots if y > top]:
        carets = "".join(f"M{axes.x(x) - 3:g},{TOP + 5}l3,-5l3,5" for x in above)
        yield Mark(path=carets, look="beyond", series=colour)


def _steps(dots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of a staircase through dots, from left to right: horizontal, then vertical."""
    corners: list[tuple[float, float]] = []
    for x, y in sorted(dots, key=lambda dot: (dot[0], -dot[1])):
        corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
    return corners


def _place_labels(dots: Sequence[tuple[str, float, float]], line: Sequence[tuple[float, float]]) -> tuple[Label, ...]:
    """Place labels beside dots; labels that would overlap something or leave the axes are omitted.

    Args:
        dots: (text, x, y) in the units of the drawing, most important first; the text may be empty.
        line: corners of the staircase.
    """
    taken = [(x - 4, y - 4, x + 4, y + 4) for _, x, y in dots]
    taken += [(min(a, c) - 1, min(b, d) - 1, max(a, c) + 1, max(b, d) + 1) for (a, b), (c, d) in pairwise(line)]
    labels = []
    for text, x, y in filter(lambda dot: dot[0], dots):
        width = MAX_DIGIT_WIDTH * len(text)
        for across, down, anchor in LABEL_POSITIONS:
            left = x + across - {"start": 0, "middle": width / 2, "end": width}[anchor]
            box = (left, y + down - 10, left + width, y + down + 1)
            inside = box[0] > LEFT and box[1] > TOP - 4 and box[2] < WIDTH - RIGHT and box[3] < HEIGHT - BOTTOM
            if inside and not any(box[0] < c and a < box[2] and box[1] < d and b < box[3] for a, b, c, d in taken):
                taken.append(box)
                labels.append(Label(x=round(x + across, 2), y=round(y + down, 2), text=text, anchor=anchor))
                break
    return tuple(labels)


def distribution(series: Mapping[str, Values], x_label: str, y_label: str, percentile: int = 99) -> Chart:
    """Draw cumulative distributions.

    Args:
        series: non-empty values (0 or more) by name.
        y_label: label of the share in percent.
        percentile: where the curves end, so that one outlier does not flatten the rest.
    """
    shares = np.arange(percentile + 1)
    values = [np.percentile(np.asarray(ys, np.float64), shares).tolist() for ys in series.values()]
    low, high = min(curve[0] for curve in values), max(curve[-1] for curve in values)
    axes = _Axes(x_range=_around(low, high), y_range=(0, 100))
    marks = [
        Mark(path=axes.line(list(zip(curve, shares.tolist(), strict=True))), look="line", series=index % COLOURS)
        for index, curve in enumerate(values)
    ]
    note = f"{x_label} (up to p{percentile})"
    return _chart(axes, marks, series, note, y_label, f"Distribution of {x_label}")


def bars(rows: Mapping[str, Mapping[str, float]], starts: Mapping[str, float] | None = None) -> tuple[Bar, ...]:
    """Create stacked bars on a common scale.

    Args:
        rows: values (0 or more, not all 0) by name of the part, by label of the bar.
        starts: offsets by label of the bar; 0 for others.
    """
    starts = starts or {}
    longest = max(starts.get(label, 0.0) + sum(parts.values()) for label, parts in rows.items())
    stacked = []
    for label, parts in rows.items():
        total = sum(parts.values())
        pieces = tuple(
            Part(name=name, value=value, share=100 * value / total, width=100 * value / longest)
            for name, value in parts.items()
        )
        stacked.append(Bar(label=label, parts=pieces, total=total, start=100 * starts.get(label, 0.0) / longest))
    return tuple(stacked)


def scale(
    colour: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.uint8]], high: float, label: str, factor: float = 1
) -> Scale:
    """Create a colour bar for values from 0 to `high`.

    Args:
        colour: maps values `[1, N]` to uint8 RGB `[1, N, 3]`.
        factor: scale of the tick labels, such as 100 for percent.
    """
    # From just above 0, because the depth colour map draws 0 as missing.
    colours = colour(np.linspace(1e-6 * high, high, SCALE_STEPS, dtype=np.float32)[None])[0]
    ticks = (Tick(at=100 * value / high, label=f"{factor * value:g}") for value in round_ticks(0, high, 6))
    return Scale(
        label=label, colours=tuple(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colours.tolist()), ticks=tuple(ticks)
    )


def _chart(axes: _Axes, marks: list[Mark], names: Iterable[str], x_label: str, y_label: str, summary: str) -> Chart:
    (x_ticks, y_ticks), legend = axes.ticks(), tuple(names)
    return Chart(
        summary=summary,
        x_label=x_label,
        y_label=y_label,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        marks=tuple(marks),
        legend=legend if len(legend) > 1 else (),
    )


def _around(low: float, high: float) -> tuple[float, float]:
    """Choose an axis for values from `low` to `high` (0 or more), with a margin."""
    # At least a fifth of the value long, so that noise of a percent does not look like a change.
    if high <= 0:
        return 0.0, 1.0
    half = max(1.08 * (high - low), 0.2 * high) / 2
    middle = (low + high) / 2
    return max(0.0, middle - half), middle + half


def above(value: float) -> float:
    """Round up to 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8 or 10 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return float(next(step * power for step in steps if step * power >= value * (1 - 1e-9)))
