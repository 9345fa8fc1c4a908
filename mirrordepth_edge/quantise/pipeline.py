"""Quantise an FP32 ONNX file to INT8: calibrate, quantise, evaluate depth, fall back to floating point, write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.artefact import Artefact, copy_reference
from mirrordepth_edge.backends.onnxruntime import OnnxRuntimeSession
from mirrordepth_edge.config import QuantiseConfig
from mirrordepth_edge.data.sample import InMemory, Sample
from mirrordepth_edge.errors import GateError, InputError
from mirrordepth_edge.export.accuracy import ACCURACY_CURE, AccuracyEvaluator, GateFrames, check_accuracy
from mirrordepth_edge.export.dynamic_shapes import fix_shapes, options_per_size
from mirrordepth_edge.export.fp16 import check_range, to_fp16
from mirrordepth_edge.export.parity import (
    CPU,
    LIMITS_ELSEWHERE,
    figures,
    measure_parity_with,
    reference_frames,
    worst_parity,
)
from mirrordepth_edge.graph.activations import ActivationStatistics, Ranges, collect, coverage
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor
from mirrordepth_edge.manifest import Accuracy, Manifest, Quantisation, write_artefact
from mirrordepth_edge.quantise.calibration_set import CalibrationSet
from mirrordepth_edge.quantise.qdq import (
    MIN_OPSET,
    calibrated_tensors,
    is_quantised,
    layer_groups,
    opset_of,
    quantisable,
)
from mirrordepth_edge.quantise.qdq import quantise as quantise_nodes
from mirrordepth_edge.quantise.sensitivity import measure_sensitivity
from mirrordepth_edge.support.files import sha256_of

if TYPE_CHECKING:
    import onnx

HELD_OUT_EVERY: Final = 8
"""One of this many frames of a calibration set is held out of calibration, to evaluate the result on."""
MAX_HELD_OUT: Final = 64
SENSITIVITY_FRAMES: Final = 16
"""Number of frames on which the sensitivity of each layer group is measured."""
CAST_FRAMES: Final = 8
"""Number of frames whose activations decide what overflows in FP16."""


@dataclass(frozen=True)
class ProgressCallback:
    """Callbacks that report progress."""

    stage: Callable[[str, int], object] = lambda name, steps: None
    """Called when a stage begins, with its name and number of steps (0: unknown)."""
    step: Callable[[], object] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Layers that may run in INT8 so that the accuracy gate holds."""

    nodes: tuple[str, ...]
    fp_fallback: tuple[str, ...]
    accuracy: Accuracy


@dataclass(kw_only=True)
class Int8Quantizer:
    """Makes INT8 candidates of one FP32 file: the same ranges, different layers.

    A file with dynamic shapes is evaluated at its opt size.

    Args:
        fp32: an ONNX file in FP32.
        calibration: real frames.
        labelled: frames with measured depth to evaluate on; those held out of the calibration set if None.
        folder: for temporary files.

    Raises:
        InputError: the file is quantised already, not FP32, or its opset is too old.
    """

    fp32: Artefact
    calibration: CalibrationSet
    config: QuantiseConfig
    folder: Path
    labelled: GateFrames | None = None
    progress: ProgressCallback = field(default_factory=ProgressCallback)

    def __post_init__(self) -> None:
        import onnx

        self.manifest = self.fp32.manifest
        self.dynamic_model = onnx.load(self.fp32.path)
        self.at_opt = self.manifest.at()
        self.model = fix_shapes(self.dynamic_model, self.at_opt.inputs)
        if (opset := opset_of(self.dynamic_model)) < MIN_OPSET["float32"]:
            raise InputError(
                f"{self.fp32.path} cannot be quantised: its opset is {opset}.",
                f"Per-channel scales need opset {MIN_OPSET['float32']}.",
                "Export it again: mde export writes opset 18.",
            )
        if is_quantised(self.model) or self.manifest.precision != "fp32":
            raise InputError(
                f"{self.fp32.path} is {self.manifest.precision.upper()} already.",
                "INT8 is made from FP32 weights.",
                "Pass the checkpoint, or the FP32 file that it was made from.",
            )
        self.nodes = quantisable(self.model)
        self.groups = layer_groups(self.nodes)
        self.held_out: list[Frame] = []
        self.statistics = self._calibrate()

    def preprocess(self, frames: Sequence[Frame]) -> list[npt.NDArray[Any]]:
        """Convert frames to network inputs at the opt size."""
        prepare = Preprocessor(self.at_opt.preprocess, self.at_opt.inputs[0].io)
        return [prepare(frame).copy() for frame in frames]

    def _calibrate(self) -> ActivationStatistics:
        total = self.calibration.count
        # A small set is calibrated on as a whole; a large one holds out about `MAX_HELD_OUT` frames.
        every = HELD_OUT_EVERY if total >= 2 * HELD_OUT_EVERY else total + 1
        every = max(every, total // MAX_HELD_OUT)

        def calibration_inputs() -> Iterator[npt.NDArray[Any]]:
            prepare = Preprocessor(self.at_opt.preprocess, self.at_opt.inputs[0].io)
            for number, image in enumerate(self.calibration.images(self.at_opt.preprocess)):
                if number % every == every - 1:
                    self.held_out.append(image[0].copy())
                else:
                    yield prepare(image[0])

        tensors = calibrated_tensors(self.model, self.nodes, self.config.scheme)
        self.progress.stage("calibrating", total - total // every)
        statistics = collect(self.model, tensors, calibration_inputs(), on_frame=lambda done: self.progress.step())
        if not self.held_out:  # the set is too small to hold frames out
            self.held_out = [image[0].copy() for image in self.calibration.images(self.at_opt.preprocess)]
        return statistics

    @cached_property
    def ranges(self) -> Ranges:
        """Activation ranges, chosen by the configured calibration method."""
        self.progress.stage("choosing ranges", 0)
        return self.statistics.ranges(self.config.method, symmetric=self.config.scheme == "gpu")

    @cached_property
    def domain_problem(self) -> str | None:
        """Why the calibration set does not cover the package's own photos; None if it does."""
        images = self.preprocess(reference_frames())
        observed = collect(self.model, [*self.statistics.tensors], images)
        return coverage(self.statistics, observed).problem

    @cached_property
    def base(self) -> onnx.ModelProto:
        """The model that INT8 layers are put into: FP16 for GPUs, FP32 for CPUs."""
        if self.config.scheme == "cpu":
            return self.dynamic_model
        import onnx

        self.progress.stage("converting the rest to FP16", 0)
        frames = self.held_out[:: -(-len(self.held_out) // CAST_FRAMES)]
        half = to_fp16(self.fp32.path, frames, self.at_opt.preprocess, self.at_opt.inputs[0])
        check_range(self.fp32.path, half, self.preprocess(frames))
        if opset_of(half) < MIN_OPSET["float16"]:
            half = onnx.version_converter.convert_version(half, MIN_OPSET["float16"])
        return half

    def make(self, nodes: Sequence[str]) -> onnx.ModelProto:
        """Make a candidate whose `nodes` run in INT8."""
        return quantise_nodes(self.base, nodes, self.ranges, self.config.scheme)

    @cached_property
    def sensitivity(self) -> dict[str, float]:
        """Depth error of each group when it alone is in INT8, the most sensitive first."""
        return self.measure_sensitivity({})

    def measure_sensitivity(
        self, known: dict[str, float], on_group: Callable[[str, float], object] = lambda group, sensitivity: None
    ) -> dict[str, float]:
        """Measure the sensitivity of all groups that are not in `known`."""
        frames = self.held_out[:: -(-len(self.held_out) // SENSITIVITY_FRAMES)]
        self.progress.stage("quantising one group of layers at a time", len(self.groups) - len(known))

        def report(group: str, sensitivity: float) -> None:
            on_group(group, sensitivity)
            self.progress.step()

        return measure_sensitivity(
            self.model, self.groups, self.ranges, self.config.scheme, self.preprocess(frames), known, report
        )

    @cached_property
    def evaluator(self) -> AccuracyEvaluator:
        """Compares candidates with the FP32 file on the labelled or held-out frames."""
        shared = self.statistics.frames == self.calibration.count
        held_out = "the same frames as for calibration: too few to hold some out" if shared else "held out"
        no_depth = np.zeros(self.at_opt.preprocess.size_hw, np.float32)
        samples = [Sample(str(number), frame, no_depth) for number, frame in enumerate(self.held_out)]
        frames = self.labelled or GateFrames(
            samples=InMemory(samples=samples),
            protocol=None,
            data=f"the calibration set {self.calibration.name}, {held_out}",
        )
        folder = self.folder / "fp32-depth"
        folder.mkdir(exist_ok=True)
        self.progress.stage("FP32 depth to compare with", len(frames.samples))
        return AccuracyEvaluator(self.fp32, frames, folder, self.progress.step)

    def accuracy(self, nodes: Sequence[str]) -> Accuracy:
        """Measure the accuracy of the candidate whose `nodes` run in INT8."""
        import onnx

        evaluator, path = self.evaluator, self.folder / "candidate.onnx"
        onnx.save(self.make(nodes), path)
        stage = f"evaluating {len(nodes)} of {len(self.nodes)} layers in INT8"
        self.progress.stage(stage, len(evaluator.frames.samples))
        return evaluator.evaluate(path, self.manifest_of(nodes), self.config.max_loss)

    def without(self, groups: Sequence[str]) -> tuple[str, ...]:
        """Return all quantisable nodes except those of `groups`."""
        fallback = {node for group in groups for node in self.groups[group]}
        return tuple(node for node in self.nodes if node not in fallback)

    def fit(self) -> Fitted:
        """Keep groups of layers in floating point, the most sensitive first, until the accuracy gate holds.

        The smallest number of groups is found by bisection. With `force`, all groups stay in INT8.

        Raises:
            GateError: the gate does not hold even with a single group in INT8.
        """
        trail = [(0, self.accuracy(self.nodes))]
        if trail[0][1].holds or self.config.force:
            return Fitted(nodes=self.nodes, fp_fallback=(), accuracy=trail[0][1])
        order = [*self.sensitivity]
        failing, upper = 0, len(order)
        best: Accuracy | None = None
        while failing + 1 < upper:
            count = (failing + upper) // 2
            accuracy = self.accuracy(self.without(order[:count]))
            trail.append((count, accuracy))
            if accuracy.holds:
                upper, best = count, accuracy
            else:
                failing = count
        if best is None:
            raise self._gate_error(trail)
        fallback = tuple(order[:upper])
        return Fitted(nodes=self.without(fallback), fp_fallback=fallback, accuracy=best)

    def _gate_error(self, trail: Sequence[tuple[int, Accuracy]]) -> GateError:
        attempts = "; ".join(f"{count}: {accuracy.loss:+.2%}" for count, accuracy in trail)
        worst = ", ".join(f"{group} ({sensitivity:.2%})" for group, sensitivity in list(self.sensitivity.items())[:3])
        return GateError(
            "INT8 loses too much depth accuracy, even with layers kept in floating point; nothing was written.",
            f"{trail[0][1]}. Loss by number of the {len(self.groups)} layer groups kept in floating point: {attempts}. "
            f"Most sensitive: {worst}.",
            ACCURACY_CURE,
        )

    def manifest_of(self, nodes: Sequence[str]) -> Manifest:
        """Return the manifest of a candidate that was not evaluated yet."""
        return replace(self.manifest, precision="int8", quantisation=self._quantisation(nodes, (), None))

    def _quantisation(self, nodes: Sequence[str], fallback: tuple[str, ...], accuracy: Accuracy | None) -> Quantisation:
        return Quantisation(
            scheme=self.config.scheme,
            method=self.config.method,
            calibration=self.calibration.name,
            calibration_sha256=self.calibration.sha256,
            calibration_frames=self.statistics.frames,
            int8_nodes=tuple(nodes),
            fp_fallback=fallback,
            accuracy=accuracy,
            forced=accuracy is not None and not accuracy.holds,
            domain_problem=self.domain_problem,
        )

    def write(self, output: Path, fitted: Fitted, parent_sha256: str) -> Manifest:
        """Write a candidate with its manifest and the reference depth of its FP32 file.

        Args:
            parent_sha256: of the file to record as the origin.

        Raises:
            GateError: without `force`, if the accuracy gate does not hold, or if depth differs too much from the FP32
                file's at one of its sizes.
        """
        import onnx

        if not self.config.force:
            check_accuracy(fitted.accuracy)
        candidate = self.folder / "int8.onnx"
        model = self.make(fitted.nodes)
        onnx.save(model, candidate)
        quantisation = self._quantisation(fitted.nodes, fitted.fp_fallback, fitted.accuracy)
        manifest = replace(
            self.manifest,
            artefact_sha256=sha256_of(candidate),
            parent_sha256=parent_sha256,
            precision="int8",
            opset=opset_of(model),
            quantisation=quantisation,
        )
        sessions = (OnnxRuntimeSession(candidate, manifest, options) for options in options_per_size(manifest, CPU))
        limits = LIMITS_ELSEWHERE["int8"]
        parity = worst_parity(measure_parity_with(session, self.fp32, limits) for session in sessions)
        if not limits.hold(parity):
            if not self.config.force:
                raise GateError(
                    "INT8 differs too much from FP32 on the package's photos; nothing was written.",
                    f"Over {parity.frames} frames at all sizes: {figures(parity)}; limit: {limits}. "
                    + (self.domain_problem or "The calibration images may not match the camera."),
                    "Calibrate on images of your camera, narrow --dynamic, or pass --force to write it anyway.",
                )
            manifest = replace(manifest, quantisation=replace(quantisation, forced=True))
        manifest = replace(manifest, parity=parity)
        write_artefact(output, candidate.read_bytes(), manifest)
        copy_reference(self.fp32.path, output)
        return manifest
