"""Accuracy of quantised candidates, and the gate that they must pass.

A candidate is compared with the FP32 file it was made from, on the same frames: both against measured depth if there
is any, otherwise the candidate against the FP32 file's depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mirrordepth_edge.artefact import Artefact
from mirrordepth_edge.backends.onnxruntime import OnnxRuntimeSession
from mirrordepth_edge.data.sample import DepthDataset, Sample
from mirrordepth_edge.errors import GateError
from mirrordepth_edge.evaluation.evaluate import Evaluation, Protocol, evaluate
from mirrordepth_edge.evaluation.metrics import Depth
from mirrordepth_edge.export.parity import CPU
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.manifest import Accuracy, DepthFigures, Manifest
from mirrordepth_edge.predictor import DepthPredictor

AGAINST_FP32 = Protocol(limits_m=(1e-6, 1e6))
"""Every pixel counts in a comparison with depth of the same model."""
ACCURACY_CURE = (
    "Allow a larger loss (--max-absrel-loss), try another --calib-method, or use --fp16. mde export --sweep shows the "
    "cost of each layer. --force writes the file anyway and marks it as failed."
)


@dataclass(frozen=True, kw_only=True)
class GateFrames:
    """Frames that candidates are evaluated on."""

    samples: DepthDataset
    """Their depth is used only if there is a `protocol`."""
    protocol: Protocol | None
    """How to compare with measured depth; None if there is none."""
    data: str
    """Description of the frames, for reports."""


class AccuracyEvaluator:
    """Compares candidates with one FP32 file.

    Args:
        fp32: the file.
        frames: the frames to evaluate on.
        folder: for the FP32 file's depth, `4 H W` bytes per frame: it is computed once for many candidates.
        on_frame: called after each frame that a model has run on.

    Raises:
        InputError: a labelled frame has no valid depth.
    """

    def __init__(
        self,
        fp32: Artefact,
        frames: GateFrames,
        folder: Path,
        on_frame: Callable[[], object] = lambda: None,
    ) -> None:
        self.frames, self.folder, self.on_frame = frames, folder, on_frame
        self.baseline: Evaluation | None = None
        """The FP32 file against measured depth."""
        with _predictor(fp32.path, fp32.manifest) as predict:
            if frames.protocol is None:
                for number, sample in enumerate(frames.samples):
                    self._store(number, predict(sample.frame))
            else:
                numbers = iter(range(len(frames.samples)))
                self.baseline = evaluate(
                    lambda frame: self._store(next(numbers), predict(frame)), frames.samples, frames.protocol
                )

    def _store(self, number: int, depth_m: Depth) -> Depth:
        np.save(self.folder / f"{number}.npy", depth_m)
        self.on_frame()
        return depth_m

    def _fp32_depth(self, number: int) -> Depth:
        depth_m: Depth = np.load(self.folder / f"{number}.npy")
        return depth_m

    def evaluate(self, candidate: Path, manifest: Manifest, limit: float) -> Accuracy:
        """Run a candidate on every frame.

        Args:
            candidate: an ONNX file.
            manifest: its description, which need not be beside the file.
            limit: the largest accepted loss.
        """
        differences: list[tuple[float, float]] = []

        def predict_and_compare(frame: Frame) -> Depth:
            depth_m, fp32_m = predict(frame), self._fp32_depth(len(differences))
            # A NaN compares false with every limit, so it counts as infinite.
            relative = np.nan_to_num(np.abs(depth_m.astype(np.float64) - fp32_m) / fp32_m, nan=np.inf)
            differences.append((float(relative.mean()), float(relative.max())))
            self.on_frame()
            return depth_m

        with _predictor(candidate, manifest) as predict:
            if self.frames.protocol is None:
                evaluation = evaluate(predict_and_compare, self._fp32_samples(), AGAINST_FP32)
            else:
                evaluation = evaluate(predict_and_compare, self.frames.samples, self.frames.protocol)
        means, maxima = zip(*differences, strict=True)
        return Accuracy(
            data=self.frames.data,
            frames=len(means),
            figures=_figures(evaluation),
            fp32=None if self.baseline is None else _figures(self.baseline),
            mean_relative=sum(means) / len(means),
            max_relative=max(maxima),
            limit=limit,
        )

    def _fp32_samples(self) -> Iterator[Sample]:
        """The frames, with the FP32 file's depth as the ground truth."""
        for number, sample in enumerate(self.frames.samples):
            yield Sample(sample.name, sample.frame, self._fp32_depth(number))


def _predictor(path: Path, manifest: Manifest) -> DepthPredictor:
    return DepthPredictor(OnnxRuntimeSession(path, manifest, CPU), manifest.model)


def _figures(evaluation: Evaluation) -> DepthFigures:
    mean, boundary = evaluation.mean, evaluation.boundary_f1_wide
    return DepthFigures(abs_rel=mean.abs_rel, delta1=mean.delta1, boundary_f1=None if boundary is None else boundary.f1)


def check_accuracy(accuracy: Accuracy) -> None:
    """Check the accuracy gate.

    Raises:
        GateError: INT8 loses more depth accuracy than allowed.
    """
    if accuracy.holds:
        return
    raise GateError(
        "INT8 loses more depth accuracy than allowed; nothing was written.",
        f"{accuracy}; worst pixel {accuracy.max_relative:.0%} from FP32.",
        ACCURACY_CURE,
    )
