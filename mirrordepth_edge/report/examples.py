"""Example images of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mirrordepth_edge.data.sample import DepthDataset
from mirrordepth_edge.evaluation.evaluate import Evaluation, predict_by_protocol
from mirrordepth_edge.evaluation.metrics import Depth, Mask
from mirrordepth_edge.imaging.preprocess import Frame

EXAMPLES_PER_PLACE = 2
"""Number of best, of median and of worst images to show."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image with its true depth and the depth of every model."""

    place: str
    """`best`, `median` or `worst`, by the first model's AbsRel."""
    name: str
    frame: Frame
    truth_m: Depth
    counted: Mask
    predictions_m: dict[str, Depth]
    abs_rel: dict[str, float]


class ExampleSheet:
    """The best, median and worst images of an evaluation, chosen by the first model.

    They are predicted again, because an evaluation does not keep its images.
    """

    def __init__(self, dataset: DepthDataset, per_place: int = EXAMPLES_PER_PLACE) -> None:
        self._dataset = dataset
        self._per_place = per_place
        self._examples: dict[int, Example] = {}

    def add(self, model: str, predict: Callable[[Frame], Depth], evaluation: Evaluation) -> None:
        """Predict the examples with a model that was evaluated on the whole data set, in its order."""
        errors = [picture.metrics.abs_rel for picture in evaluation.pictures]
        places = {index: example.place for index, example in self._examples.items()} or extremes(
            errors, self._per_place
        )
        for index, place in places.items():
            sample = self._dataset[index]
            depth_m, counted = predict_by_protocol(predict, sample, evaluation.protocol)
            previous = self._examples.get(index)
            self._examples[index] = Example(
                place=place,
                name=sample.name,
                frame=sample.frame,
                truth_m=sample.depth_m,
                counted=counted,
                predictions_m={**(previous.predictions_m if previous else {}), model: depth_m},
                abs_rel={**(previous.abs_rel if previous else {}), model: errors[index]},
            )

    @property
    def examples(self) -> tuple[Example, ...]:
        """All examples, best first."""
        return tuple(self._examples.values())


def extremes(errors: list[float], per_place: int) -> dict[int, str]:
    """Choose the best, median and worst images.

    Args:
        per_place: how many of each; fewer if there are less than three times as many images.

    Returns:
        Index to place, best first, without duplicates.
    """
    per_place = max(1, min(per_place, len(errors) // 3))
    order = [int(index) for index in np.argsort(errors, kind="stable")]
    middle = max(0, (len(order) - per_place) // 2)
    wanted = {"worst": order[::-1][:per_place], "best": order[:per_place], "median": order[middle : middle + per_place]}
    places: dict[int, str] = {}
    for place, indices in wanted.items():
        for index in indices:
            places.setdefault(index, place)
    return {index: places[index] for index in order if index in places}
