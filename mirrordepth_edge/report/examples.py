"""The few pictures of an evaluation that are looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mirrordepth_edge.data.sample import DepthDataset
from mirrordepth_edge.evaluation.evaluate import Evaluation, predict_by_protocol
from mirrordepth_edge.evaluation.metrics import Depth, Mask
from mirrordepth_edge.imaging.preprocess import Frame

EACH = 2
"""Pictures shown of the best, of the median and of the worst."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One picture with its depth and every model's, kept to be shown."""

    place: str
    """`best`, `median` or `worst`, by the first model's AbsRel."""
    name: str
    frame: Frame
    truth_m: Depth
    counted: Mask
    predictions_m: dict[str, Depth]
    abs_rel: dict[str, float]


class ExampleSheet:
    """The best, the median and the worst pictures of an evaluation, predicted again to be looked at.

    Which they are is decided by the first model; only these few are held in memory.
    """

    def __init__(self, dataset: DepthDataset, each: int = EACH) -> None:
        self._dataset = dataset
        self._each = each
        self._examples: dict[int, Example] = {}

    def add(self, model: str, predict: Callable[[Frame], Depth], evaluation: Evaluation) -> None:
        """Predict the chosen pictures with a model that was evaluated on the whole data set, in its order."""
        errors = [picture.metrics.abs_rel for picture in evaluation.pictures]
        places = {index: each.place for index, each in self._examples.items()} or extremes(errors, self._each)
        for index, place in places.items():
            sample = self._dataset[index]
            depth_m, counted = predict_by_protocol(predict, sample, evaluation.protocol)
            before = self._examples.get(index)
            self._examples[index] = Example(
                place=place,
                name=sample.name,
                frame=sample.frame,
                truth_m=sample.depth_m,
                counted=counted,
                predictions_m={**(before.predictions_m if before else {}), model: depth_m},
                abs_rel={**(before.abs_rel if before else {}), model: errors[index]},
            )

    @property
    def examples(self) -> tuple[Example, ...]:
        """Best first."""
        return tuple(self._examples.values())


def extremes(errors: list[float], each: int) -> dict[int, str]:
    """Which pictures are best, median and worst: index to place, best first, none twice.

    Args:
        each: how many of each; fewer where there are less than three times as many.
    """
    each = max(1, min(each, len(errors) // 3))
    order = [int(index) for index in np.argsort(errors, kind="stable")]
    middle = max(0, (len(order) - each) // 2)
    wanted = {"worst": order[::-1][:each], "best": order[:each], "median": order[middle : middle + each]}
    places: dict[int, str] = {}
    for place, indices in wanted.items():
        for index in indices:
            places.setdefault(index, place)
    return {index: places[index] for index in order if index in places}
