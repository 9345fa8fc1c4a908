"""What a lower precision costs in depth, and the gate that it has to pass.

A candidate is judged beside the FP32 file it was made from, on the same frames: against measured depth where there is
some, else against the FP32 file's own. Frames are read one by one; the FP32 file's depth is computed once and kept on
the disk, for dozens of candidates may follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
"""Every pixel counts where depth is compared with depth of the same model."""
TOO_MUCH_CURE = (
    "Allow more (--max-absrel-loss), try another --calib-method, take --fp16, or see what each layer costs: "
    "mde export --sweep. --force writes it all the same, marked as failed."
)


@dataclass(frozen=True, kw_only=True)
class GateFrames:
    """What candidates are judged on."""

    samples: DepthDataset
    """Pictures; their depth is looked at only where `protocol` says how."""
    protocol: Protocol | None
    """How measured depth is compared; None where there is none."""
    data: str
    """What the frames are, in words."""


class AccuracyEvaluator:
    """Compares candidates with one FP32 file.

    Args:
        fp32: the file.
        manifest: its manifest.
        frames: what on.
        folder: where the FP32 file's depth is kept meanwhile, `4 H W` bytes a frame.
        on_frame: told after each frame that a model has run on.

    Raises:
        InputError: a frame has no valid depth where there should be some.
    """

    def __init__(
        self,
        fp32: Path,
        manifest: Manifest,
        frames: GateFrames,
        folder: Path,
        on_frame: Callable[[], object] = lambda: None,
    ) -> None:
        self.frames, self.folder, self.on_frame = frames, folder, on_frame
        self.baseline: Evaluation | None = None
        """The FP32 file against measured depth."""
        with _predictor(fp32, manifest) as predict:
            if frames.protocol is None:
                for number, sample in enumerate(frames.samples):
                    self._keep(number, predict(sample.frame))
            else:
                numbers = iter(range(len(frames.samples)))
                self.baseline = evaluate(
                    lambda frame: self._keep(next(numbers), predict(frame)), frames.samples, frames.protocol
                )

    def _keep(self, number: int, depth_m: Depth) -> Depth:
        np.save(self.folder / f"{number}.npy", depth_m)
        self.on_frame()
        return depth_m

    def _fp32_depth(self, number: int) -> Depth:
        kept: Depth = np.load(self.folder / f"{number}.npy")
        return kept

    def evaluate(self, candidate: Path, manifest: Manifest, limit: float) -> Accuracy:
        """Run a candidate on every frame.

        Args:
            candidate: an ONNX file.
            manifest: what it is.
            limit: the largest loss at which the gate holds.
        """
        differences: list[tuple[float, float]] = []

        def compared(frame: Frame) -> Depth:
            depth_m, fp32_m = predict(frame), self._fp32_depth(len(differences))
            # A NaN compares false with every limit, so it is made the worst there is.
            relative = np.nan_to_num(np.abs(depth_m.astype(np.float64) - fp32_m) / fp32_m, nan=np.inf)
            differences.append((float(relative.mean()), float(relative.max())))
            self.on_frame()
            return depth_m

        with _predictor(candidate, manifest) as predict:
            if self.frames.protocol is None:
                found = evaluate(compared, self._against_fp32(), AGAINST_FP32)
            else:
                found = evaluate(compared, self.frames.samples, self.frames.protocol)
        means, worst = zip(*differences, strict=True)
        return Accuracy(
            data=self.frames.data,
            frames=len(means),
            figures=_figures(found),
            fp32=None if self.baseline is None else _figures(self.baseline),
            mean_relative=sum(means) / len(means),
            max_relative=max(worst),
            limit=limit,
        )

    def _against_fp32(self) -> Iterator[Sample]:
        for number, sample in enumerate(self.frames.samples):
            yield Sample(sample.name, sample.frame, self._fp32_depth(number))


def _predictor(path: Path, manifest: Manifest) -> DepthPredictor:
    return DepthPredictor(OnnxRuntimeSession(path, manifest, CPU), manifest.model)


def _figures(found: Evaluation) -> DepthFigures:
    mean, boundary = found.mean, found.boundary_f1_wide
    return DepthFigures(abs_rel=mean.abs_rel, delta1=mean.delta1, boundary_f1=None if boundary is None else boundary.f1)


def check_accuracy(accuracy: Accuracy) -> None:
    """Hold the gate.

    Raises:
        GateError: INT8 costs more depth than was allowed.
    """
    if accuracy.holds:
        return
    raise GateError(
        "INT8 costs more depth than allowed; nothing was written.",
        f"{accuracy}; worst pixel {accuracy.max_relative:.0%} off FP32.",
        TOO_MUCH_CURE,
    )
