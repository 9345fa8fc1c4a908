"""Which pictures are looked at, and that they are predicted as they were evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mirrordepth_edge.data.sample import DepthDataset, Sample
from mirrordepth_edge.evaluation.evaluate import Protocol, evaluate
from mirrordepth_edge.evaluation.metrics import Depth
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.report.examples import ExampleSheet, extremes

PROTOCOL = Protocol(limits_m=(1e-3, 10.0))


class Numbered(DepthDataset):
    """Pictures whose red is their number; two metres everywhere."""

    def __init__(self, count: int) -> None:
        self.count, self.read = count, []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        return Sample(self.name(index), np.full((4, 6, 3), index, np.uint8), np.full((4, 6), 2, np.float32))

    def name(self, index: int) -> str:
        return f"picture {index}"

    def files(self) -> list[Path]:
        return []


def off_by_number(frame: Frame) -> Depth:
    """AbsRel of a picture is a hundredth of (its number times 7, modulo 11), through one array."""
    BUFFER[:] = 2 * (1 + (int(frame[0, 0, 0]) * 7 % 11) / 100)
    return BUFFER


BUFFER = np.empty((4, 6), np.float32)


def test_extremes_are_best_median_and_worst_in_order() -> None:
    errors = [0.5, 0.1, 0.9, 0.3, 0.7, 0.2, 0.8, 0.4, 0.6]
    assert extremes(errors, 1) == {1: "best", 0: "median", 2: "worst"}
    two = extremes(errors, 2)
    assert [errors[index] for index in two] == [0.1, 0.2, 0.4, 0.5, 0.8, 0.9]
    assert list(two.values()) == ["best", "best", "median", "median", "worst", "worst"]


@pytest.mark.parametrize(
    ("count", "shown"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (5, [0, 2, 4]), (6, list(range(6)))]
)
def test_few_pictures_are_shown_once_each(count: int, shown: list[int]) -> None:
    found = extremes([float(k) for k in range(count)], 2)
    assert list(found) == shown
    assert found[count - 1] == "worst"
    if count > 2:
        assert sorted(set(found.values())) == ["best", "median", "worst"]


def test_pictures_of_the_same_error_stay_in_order() -> None:
    assert list(extremes([0.5] * 41, 1)) == [0, 20, 40]


def test_only_the_chosen_pictures_are_predicted_again() -> None:
    dataset = Numbered(11)
    result = evaluate(off_by_number, dataset, PROTOCOL)
    dataset.read.clear()
    sheet = ExampleSheet(dataset, per_place=1)
    sheet.add("a", off_by_number, result)
    assert len(dataset.read) == 3
    best, median, worst = sheet.examples
    assert [example.place for example in (best, median, worst)] == ["best", "median", "worst"]
    assert best.name == "picture 0"
    assert [example.abs_rel["a"] for example in (best, median, worst)] == pytest.approx([0, 0.05, 0.10], abs=1e-6)
    for example in (best, median, worst):
        assert example.predictions_m["a"][0, 0] == pytest.approx(2 * (1 + example.abs_rel["a"])), "not the shared array"
        assert example.frame[0, 0, 0] == int(example.name.split()[1])
        assert example.counted.all()


def test_further_models_show_the_pictures_of_the_first() -> None:
    dataset = Numbered(11)
    sheet = ExampleSheet(dataset, per_place=1)
    sheet.add("a", off_by_number, evaluate(off_by_number, dataset, PROTOCOL))

    def right(frame: Frame) -> Depth:
        return np.full((4, 6), 2, np.float32)

    names = [example.name for example in sheet.examples]
    sheet.add("b", right, evaluate(right, dataset, PROTOCOL))
    assert [example.name for example in sheet.examples] == names
    assert all(list(example.predictions_m) == ["a", "b"] for example in sheet.examples)
    assert [example.abs_rel["b"] for example in sheet.examples] == [0, 0, 0]
