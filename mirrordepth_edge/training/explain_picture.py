"""Charts of a `Reading`: cosines of a mirror and words, as bars or over epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from mirrordepth_edge.imaging import draw
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.training.explain import Reading

ROW_PX = 18
PLOT_PX = 480
CURVE_PX = 240
AXIS_PX = 40
GAP_PX = 8
DOT_PX = 6
LABEL_CHARACTERS = 32
CURVE_COLOURS = ((0, 90, 160), (200, 80, 0), (0, 130, 90), (150, 60, 150), (170, 140, 0), (90, 90, 90))
"""RGB of each curve, readable on white."""
GRID = (225, 225, 225)


def draw_reading(reading: Reading) -> Frame:
    """Draw a reading: a bar chart, or with epochs a heat map and the curves of the nearest words.

    Returns:
        uint8 RGB `[H, W, 3]`.
    """
    if not reading.epochs:
        return draw.titled(_bars(reading), "cosine of the mirror's text feature to words (marks: random mirrors)")
    heat = draw.titled(_heat_map(reading), "cosine of the mirror's text feature to words")
    return draw.stacked([heat, draw.titled(_curves(reading), "the same for the nearest words after the last epoch")])


def _bars(reading: Reading) -> Frame:
    order = reading.order
    low, high = _limits([0.0, *reading.cosines, *reading.by_chance])
    plot = _paper(ROW_PX * len(order), PLOT_PX)

    def column(value: float) -> int:
        return round((value - low) / (high - low) * (PLOT_PX - 1))

    ticks = draw.round_ticks(low, high, 6)
    for value in ticks:
        cv2.line(plot, (column(value), 0), (column(value), len(plot)), GRID)
    for row, index in enumerate(order):
        top = row * ROW_PX
        ends = (column(0), top + 3), (column(reading.cosines[index]), top + ROW_PX - 4)
        cv2.rectangle(plot, *ends, CURVE_COLOURS[0], cv2.FILLED)
        chance = column(reading.by_chance[index])
        cv2.line(plot, (chance, top + 1), (chance, top + ROW_PX - 2), draw.INK, 2)
    labels = _word_column(reading, len(plot))
    axis = _axis({column(value): f"{value:g}" for value in ticks}, "cosine", PLOT_PX)
    return _framed(labels, plot, axis)


def _heat_map(reading: Reading) -> Frame:
    values = np.array(reading.epoch_cosines, np.float32).T[reading.order]
    low, high = _limits(values.ravel().tolist())

    def colours(cosines: Any) -> Frame:
        # Cividis stays readable with colour vision deficiency.
        levels = ((cosines - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
        return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_CIVIDIS), cv2.COLOR_BGR2RGB)

    height = ROW_PX * len(values)
    plot: Any = cv2.resize(colours(values), (_width(reading), height), interpolation=cv2.INTER_NEAREST)
    bar = draw.bar(height, (low, high), colours, lambda value: f"{value:g}")
    return _framed(_word_column(reading, height), plot, _epoch_axis(reading), bar)


def _curves(reading: Reading) -> Frame:
    """Cosines of the finally nearest words over epochs, aligned with the columns of the heat map."""
    shown = reading.order[: len(CURVE_COLOURS)]
    values = np.array(reading.epoch_cosines, np.float32).T[shown]
    low, high = _limits(values.ravel().tolist())
    plot = _paper(CURVE_PX, _width(reading))
    columns = _epoch_columns(reading)
    names = _paper(CURVE_PX, 3 * GAP_PX + max(_text_width(_label(reading.words[index])) for index in shown))

    def row(value: float) -> int:
        return round((high - value) / (high - low) * (CURVE_PX - 1 - ROW_PX)) + ROW_PX // 2

    ticks = draw.round_ticks(low, high, 5)
    for value in ticks:
        cv2.line(plot, (0, row(value)), (plot.shape[1], row(value)), GRID)
    ends = [row(curve[-1]) for curve in values]
    # There may be fewer words than colours.
    for curve, index, colour, end, place in zip(values, shown, CURVE_COLOURS, ends, _spread(ends), strict=False):
        points = [(column, row(value)) for column, value in zip(columns, curve, strict=True)]
        cv2.polylines(plot, [np.array(points, np.int32)], False, colour, 2, cv2.LINE_AA)
        # Dots of more epochs would merge into a thick line.
        for point in points if len(points) < PLOT_PX // DOT_PX else ():
            cv2.circle(plot, point, DOT_PX // 2, colour, cv2.FILLED, cv2.LINE_AA)
        cv2.line(plot, points[-1], (plot.shape[1], end), colour, 1, cv2.LINE_AA)
        cv2.line(names, (0, end), (2 * GAP_PX, place), colour, 1, cv2.LINE_AA)
        _write(names, _label(reading.words[index]), (3 * GAP_PX, place))
    labels = _column([f"{value:.3g}" for value in ticks], [row(value) for value in ticks], CURVE_PX, _left(reading))
    return _framed(labels, plot, _epoch_axis(reading), names, gap=0)


def _framed(labels: Frame, plot: Frame, axis: Frame, right: Frame | None = None, gap: int = GAP_PX) -> Frame:
    """Arrange labels, plot, an optional panel on the right, and the axis below."""
    inside = draw.side_by_side([labels, plot], gap=GAP_PX)
    body = inside if right is None else draw.side_by_side([inside, right], gap=gap)
    below = draw.side_by_side([_paper(len(axis), labels.shape[1]), axis], gap=GAP_PX)
    return draw.stacked([_paper(GAP_PX, 1), body, below], gap=0)


def _word_column(reading: Reading, height: int) -> Frame:
    texts = [_label(reading.words[index]) for index in reading.order]
    return _column(texts, [row * ROW_PX + ROW_PX // 2 for row in range(len(texts))], height, _left(reading))


def _column(texts: list[str], centres: list[int], height: int, width: int) -> Frame:
    canvas = _paper(height, width)
    for text, centre in zip(texts, centres, strict=True):
        _write(canvas, text, (width - _text_width(text), centre))
    return canvas


def _epoch_columns(reading: Reading) -> list[int]:
    cell = _width(reading) / len(reading.epochs)
    return [int((place + 0.5) * cell) for place in range(len(reading.epochs))]


def _epoch_axis(reading: Reading) -> Frame:
    columns = dict(zip(_epoch_columns(reading), map(str, reading.epochs), strict=True))
    room = PLOT_PX // (_text_width(str(reading.epochs[-1])) + 2 * GAP_PX)
    every = -(-len(columns) // room)
    return _axis(dict(list(columns.items())[::every]), "epoch", _width(reading))


def _axis(ticks: Mapping[int, str], title: str, width: int) -> Frame:
    """Axis with tick labels by column and a title."""
    canvas = _paper(AXIS_PX, width)
    for column, text in ticks.items():
        cv2.line(canvas, (column, 0), (column, draw.TICK_PX - 1), draw.INK)
        left = min(max(column - _text_width(text) // 2, 0), width - _text_width(text))
        _write(canvas, text, (left, AXIS_PX // 4 + 3))
    _write(canvas, title, ((width - _text_width(title)) // 2, 3 * AXIS_PX // 4))
    return canvas


def _spread(rows: list[int]) -> list[int]:
    """Move label rows so that they do not overlap and stay inside the plot."""
    order = sorted(range(len(rows)), key=lambda index: rows[index])
    places = [rows[index] for index in order]
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + ROW_PX)
    limit = CURVE_PX - ROW_PX // 2
    for index in reversed(range(len(places))):
        places[index] = limit = min(places[index], limit)
        limit -= ROW_PX
    return [place for _, place in sorted(zip(order, places, strict=True))]


def _limits(values: list[float]) -> tuple[float, float]:
    return min(values), max(max(values), min(values) + 1e-3)


def _width(reading: Reading) -> int:
    """Width of a plot over epochs."""
    # A multiple of the number of epochs, so that all cells are equally wide.
    return -(-PLOT_PX // len(reading.epochs)) * len(reading.epochs)


def _left(reading: Reading) -> int:
    return max(_text_width(_label(word)) for word in reading.words) + GAP_PX


def _label(word: str) -> str:
    """A word as OpenCV's ASCII fonts can draw it."""
    text = word if len(word) <= LABEL_CHARACTERS else f"{word[: LABEL_CHARACTERS - 3]}..."
    return text.encode("ascii", "replace").decode()


def _text_width(text: str) -> int:
    return draw.text_size(text, draw.FONT_SCALE)[0]


def _write(canvas: Frame, text: str, left_middle: tuple[int, int]) -> None:
    height = draw.text_size(text, draw.FONT_SCALE)[1]
    draw.put_text(canvas, text, (left_middle[0], left_middle[1] + height // 2), draw.FONT_SCALE)


def _paper(height: int, width: int) -> Frame:
    return np.full((height, width, 3), draw.PAPER, np.uint8)
