"""Charts against the numbers they are of: paths are read back into values."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from mirrordepth_edge.report import charts
from mirrordepth_edge.report.charts import Chart, Mark, above


def value_at(ticks: tuple[charts.Tick, ...], position: float) -> float:
    """The axis' value at a position, by its own ticks."""
    (a, b) = ticks[0], ticks[-1]
    return float(a.label) + (position - a.at) / (b.at - a.at) * (float(b.label) - float(a.label))


def points(chart: Chart, mark: Mark) -> list[tuple[float, float]]:
    """A path's points as values of the axes."""
    found = re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", mark.path)
    return [(value_at(chart.x_ticks, float(x)), value_at(chart.y_ticks, float(y))) for x, y in found]


def marks(chart: Chart, look: str) -> list[Mark]:
    return [mark for mark in chart.marks if mark.look == look]


def in_frame(chart: Chart) -> bool:
    for mark in chart.marks:
        for x, y in re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", mark.path):
            if not (chart.left - 1 <= float(x) <= chart.right + 1 and chart.top - 1 <= float(y) <= chart.bottom + 1):
                return False
    return True


def test_a_histogram_holds_every_value() -> None:
    values = np.random.default_rng(0).uniform(0.05, 0.95, 500).tolist()
    chart = charts.histogram({"one": values}, "AbsRel", "pictures", bins=10)
    (area,) = marks(chart, "area")
    steps = points(chart, area)
    counts, edges = np.histogram(values, bins=np.linspace(0, 1, 11))
    tops = [(x, y) for x, y in steps[1:-1]]
    np.testing.assert_allclose([x for x, _ in tops[::2]], edges[:-1], atol=0.01)
    np.testing.assert_allclose([y for _, y in tops[::2]], counts, atol=0.5)
    assert in_frame(chart)
    assert chart.legend == ()


def test_outliers_are_in_the_last_bin() -> None:
    chart = charts.histogram({"one": [0.01] * 10 + [0.09] * 189 + [9.0]}, "AbsRel", "pictures", bins=9)
    assert "all above 0.1" in chart.x_label
    (area,) = marks(chart, "area")
    counts = [y for _, y in points(chart, area)[1:-1:2]]
    assert sum(counts) == pytest.approx(200, abs=0.2)
    assert counts[-1] == pytest.approx(190, abs=0.2)
    assert in_frame(chart)
    assert "beyond" not in charts.histogram({"one": [0.1, 0.2]}, "AbsRel", "pictures").x_label


def test_curves_pass_through_their_values_and_leave_gaps_out() -> None:
    line = [(0.5, 0.2), (1.5, None), (2.5, -0.1)]
    chart = charts.curves({"one": line, "two": [(0.5, None)]}, (0, 3), "depth", "bias")
    (drawn,) = marks(chart, "line")
    np.testing.assert_allclose(points(chart, drawn), [(0.5, 0.2), (2.5, -0.1)], atol=2e-3)
    (rule,) = marks(chart, "rule")
    np.testing.assert_allclose([y for _, y in points(chart, rule)], 0, atol=1e-3)
    assert chart.legend == ("one", "two")
    assert in_frame(chart)


def test_bars_are_as_tall_as_they_should_be() -> None:
    chart = charts.curves({"one": [(0.5, 1.0)]}, (0, 3), "depth", "AbsRel", [(0, 1, 0.6), (1, 2, 0.3), (2, 3, 0.0)])
    (bars,) = marks(chart, "bars")
    tops = [float(top) for top in re.findall(r"V([\d.]+)H", bars.path)]
    half = (chart.bottom - chart.top) / 2
    assert [chart.bottom - top for top in tops] == pytest.approx([half, half / 2, 0], abs=0.01)


@pytest.mark.parametrize("line", [[(0.5, 0.0), (1.5, 0.0)], [(0.5, None)], []])
def test_nothing_to_draw_is_drawn_all_the_same(line: list[tuple[float, float | None]]) -> None:
    assert in_frame(charts.curves({"one": line}, (0, 3), "depth", "bias"))


def test_differences_are_a_dot_each_in_the_colours_of_the_other_charts() -> None:
    chart = charts.differences([0.1, 0.2], {"b": [0.01, -0.02], "c": [0.0, 0.0]}, "AbsRel", "difference")
    b, c = marks(chart, "dots")
    np.testing.assert_allclose(points(chart, b), [(0.1, 0.01), (0.2, -0.02)], atol=1e-3)
    assert (b.series, c.series) == (1, 2), "0 is what they differ from"
    assert chart.legend == ("", "b", "c")
    assert in_frame(charts.differences([0.1], {"same": [0.0]}, "AbsRel", "difference"))


def test_a_scale_has_the_colours_of_its_values() -> None:
    def grey(values: np.ndarray) -> np.ndarray:
        return np.repeat((values * 25).astype(np.uint8)[..., None], 3, axis=-1)

    bar = charts.scale(grey, 10.0, "depth, m")
    assert (bar.colours[0], bar.colours[-1]) == ("#000000", "#fafafa")
    assert [(tick.at, tick.label) for tick in bar.ticks] == [
        (0, "0"),
        (20, "2"),
        (40, "4"),
        (60, "6"),
        (80, "8"),
        (100, "10"),
    ]
    percent = charts.scale(grey, 0.5, "error, %", 100)
    assert (percent.ticks[-1].at, percent.ticks[-1].label) == (100, "50")


@pytest.mark.parametrize(
    ("value", "round_value"), [(0, 1), (-3, 1), (1, 1), (0.83, 1), (1.01, 1.2), (7, 8), (81, 100), (0.0021, 0.0025)]
)
def test_axes_end_at_round_values(value: float, round_value: float) -> None:
    assert above(value) == pytest.approx(round_value)


def test_every_frame_is_a_dot_where_its_values_say() -> None:
    a = [(float(k), 20 + k % 3) for k in range(1, 51)]
    b = [(float(k), 30.0) for k in range(1, 51)]
    chart = charts.scatter({"a": a, "b": b}, "frame", "ms")
    first, second = marks(chart, "points")
    np.testing.assert_allclose(points(chart, first), a, atol=0.05)
    np.testing.assert_allclose(points(chart, second), b, atol=0.05)
    assert (first.series, second.series) == (0, 1)
    assert not marks(chart, "beyond")
    assert chart.x_label == "frame"
    assert chart.legend == ("a", "b")
    assert in_frame(chart)


def test_outliers_are_at_the_top_and_counted() -> None:
    """From 10 to 14 ms are 99 %: dots end at 10 + 2 * 4 = 18 ms, and 18.5 and 80 lie beyond."""
    pairs = [(float(k), 10.0 + 4 * (k % 2)) for k in range(1, 399)] + [(399.0, 80.0), (400.0, 18.5)]
    chart = charts.scatter({"a": pairs}, "frame", "ms")
    (dots,), (carets,) = marks(chart, "points"), marks(chart, "beyond")
    assert len(points(chart, dots)) == 398
    xs = [value_at(chart.x_ticks, float(x) + 3) for x in re.findall(r"M([\d.]+),", carets.path)]
    assert xs == pytest.approx([399, 400], abs=0.1)
    assert chart.x_label == "frame (at the top: 2 of 400, up to 80)"
    assert value_at(chart.y_ticks, chart.top) == pytest.approx(18 + 0.04 * 8, abs=0.01)
    assert in_frame(chart)


def test_noise_of_a_percent_stays_flat() -> None:
    chart = charts.scatter({"a": [(1.0, 100.0), (2.0, 101.0)]}, "frame", "ms")
    low, high = (value_at(chart.y_ticks, place) for place in (chart.bottom, chart.top))
    assert (low, high) == pytest.approx((100.5 - 10.1, 100.5 + 10.1), abs=0.05)
    assert in_frame(charts.scatter({"a": [(1.0, 0.0)]}, "frame", "ms"))


def test_many_dots_make_no_large_drawing() -> None:
    random = np.random.default_rng(0)
    pairs = list(enumerate(random.normal(20, 1, 100_000).tolist()))
    chart = charts.scatter({"a": pairs}, "frame", "ms")
    places = (chart.right - chart.left) * (chart.bottom - chart.top) * 4
    dots = points(chart, marks(chart, "points")[0])
    assert 10_000 < len(dots) < places / 4
    assert np.mean([y for _, y in dots]) == pytest.approx(20, abs=0.5)


def test_a_distribution_passes_through_percentiles_and_ends_at_its_last() -> None:
    values = np.random.default_rng(0).gamma(2, 5, 300)
    values[7] = 1e4
    chart = charts.distribution({"a": values.tolist(), "b": [3.0] * 10}, "ms", "frames, %", percentile=90)
    drawn = points(chart, marks(chart, "line")[0])
    expected = [float(np.percentile(values, q)) for q in range(91)]
    np.testing.assert_allclose([x for x, _ in drawn], expected, atol=0.05)
    np.testing.assert_allclose([y for _, y in drawn], range(91), atol=0.05)
    np.testing.assert_allclose([x for x, _ in points(chart, marks(chart, "line")[1])], 3, atol=0.05)
    assert chart.x_label == "ms (up to p90)"
    assert in_frame(chart)


def test_bars_are_on_one_scale() -> None:
    one, two, below = charts.bars(
        {"one": {"a": 1.0, "b": 3.0}, "two": {"a": 8.0, "c": 0.0}, "below": {"d": 2.0}}, {"below": 1.0}
    )
    assert [(part.name, part.value, part.share, part.width) for part in one.parts] == [
        ("a", 1, 25, 12.5),
        ("b", 3, 75, 37.5),
    ]
    assert [(part.share, part.width) for part in two.parts] == [(100, 100), (0, 0)]
    assert (one.total, one.start, below.total, below.start) == (4, 0, 2, 12.5)
    (wide,) = charts.bars({"wide": {"d": 3.0}}, {"wide": 1.0})
    assert wide.start + wide.parts[0].width == 100


def test_a_front_is_a_line_of_steps_below_which_nothing_is() -> None:
    dots = {"front": [("1", 0.5, 0.3), ("2", 0.6, 0.2), ("3", 0.9, 0.1)], "others": [("4", 0.7, 0.25), ("5", 0.9, 0.2)]}
    chart = charts.front(dots, [(0.9, 0.1), (0.5, 0.3), (0.6, 0.2)], "cost", "error")
    (line,) = marks(chart, "line")
    corners = [(0.5, 0.3), (0.6, 0.3), (0.6, 0.2), (0.9, 0.2), (0.9, 0.1)]
    np.testing.assert_allclose(points(chart, line), corners, atol=2e-3)
    for mark, series in zip(marks(chart, "dots"), dots.values(), strict=True):
        np.testing.assert_allclose(points(chart, mark), [(x, y) for _, x, y in series], atol=2e-3)
    assert sorted(label.text for label in chart.labels) == ["1", "2", "3", "4", "5"]
    assert chart.legend == ("front", "others")
    assert in_frame(chart)


def test_a_front_of_one_dot() -> None:
    chart = charts.front({"one": [("1", 1.0, 0.0)]}, [(1.0, 0.0)], "cost", "error")
    assert in_frame(chart)
    assert [mark.look for mark in chart.marks] == ["line", "dots"]


def test_dots_above_the_limit_are_drawn_at_the_top_and_counted() -> None:
    dots = {"front": [("1", 0.5, 9.0), ("2", 0.6, 0.2)], "others": [("3", 0.7, 0.25), ("4", 0.9, 7.0)]}
    chart = charts.front(dots, [(0.5, 9.0), (0.6, 0.2)], "cost", "error", top=1.0)
    assert [mark.path.count("M") for mark in marks(chart, "beyond")] == [1, 1]
    assert [mark.path.count("M") for mark in marks(chart, "dots")] == [1, 1]
    assert "at the top: 2 of 4, up to 9" in chart.x_label
    assert float(chart.y_ticks[-1].label) < 0.3
    worst = charts.front({"all": [("1", 1.0, 2.0), ("2", 2.0, 3.0)]}, [(1.0, 2.0)], "cost", "error", top=1.0)
    assert [mark.look for mark in worst.marks] == ["beyond"]
    assert in_frame(worst)


@pytest.mark.parametrize("seed", range(5))
def test_texts_lie_on_no_dot_no_line_and_no_other_text(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.4, 1, (40, 2)).round(3).tolist()
    dots = [(f"{number}", x, y) for number, (x, y) in enumerate(values, 10)]
    best = [(x, y) for x, y in values if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in values)]
    chart = charts.front({"all": dots}, best, "cost", "error")
    assert 10 < len(chart.labels) <= len(dots)
    start = {"start": 0.0, "middle": 0.5, "end": 1.0}
    boxes = []
    for label in chart.labels:
        left = label.x - start[label.anchor] * 7 * len(label.text)
        boxes.append((left, label.y - 9, left + 7 * len(label.text), label.y))
    assert all(chart.left < a and c < chart.right and chart.top - 5 < b and d < chart.bottom for a, b, c, d in boxes)
    for index, (a, b, c, d) in enumerate(boxes):
        for e, f, g, h in boxes[:index]:
            assert c <= e or g <= a or d <= f or h <= b
    (line,) = marks(chart, "line")
    corners = [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", line.path)]
    for (x0, y0), (x1, y1) in pairwise(corners):
        along = [(x0 + t * (x1 - x0), y0 + t * (y1 - y0)) for t in np.linspace(0, 1, 50)]
        assert not any(a < x < c and b < y < d for x, y in along for a, b, c, d in boxes)
