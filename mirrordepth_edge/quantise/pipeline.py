"""An FP32 ONNX file to INT8: calibrate, quantise, judge on depth, give layers back until the gate holds, write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends.onnxruntime import OnnxRuntimeSession
from mirrordepth_edge.config import QuantiseConfig
from mirrordepth_edge.data.sample import InMemory, Sample
from mirrordepth_edge.errors import GateError, InputError
from mirrordepth_edge.export.accuracy import TOO_MUCH_CURE, AccuracyEvaluator, GateFrames, check_accuracy
from mirrordepth_edge.export.dynamic_shapes import at_every_size, fixed
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
    FEWEST_OPSET,
    calibrated_tensors,
    is_quantised,
    layer_groups,
    opset_of,
    quantisable,
)
from mirrordepth_edge.quantise.qdq import quantise as quantise_nodes
from mirrordepth_edge.quantise.sensitivity import measure_sensitivity
from mirrordepth_edge.reference import copy_reference
from mirrordepth_edge.support.files import sha256_of

if TYPE_CHECKING:
    import onnx

HELD_OUT_EVERY: Final = 8
"""Of a calibration set's frames, so many are kept from calibrating, to judge what came of it."""
MOST_HELD_OUT: Final = 64
DAMAGE_FRAMES: Final = 16
"""Frames on which each group of layers is quantised by itself."""
CAST_FRAMES: Final = 8
"""Frames whose activations decide what overflows in FP16."""


@dataclass(frozen=True)
class ProgressCallback:
    """Who is told how far the work is."""

    stage: Callable[[str, int], object] = lambda name, steps: None
    """A stage begins, of so many steps; 0 where that is not known."""
    step: Callable[[], object] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Layers that may multiply in INT8 so that the gate holds."""

    nodes: tuple[str, ...]
    fp_fallback: tuple[str, ...]
    accuracy: Accuracy
    trail: tuple[tuple[int, Accuracy], ...]
    """What was tried: how many groups were given back, and what that cost."""


@dataclass(kw_only=True)
class Int8Quantizer:
    """Candidates of one FP32 file: the same ranges, other layers. A file of several sizes is judged at its usual one.

    Args:
        fp32: an ONNX file in FP32.
        manifest: its manifest.
        calibration: real frames.
        labelled: frames with measured depth to judge on; those held out of the calibration set where None.
        folder: for what is only needed meanwhile.

    Raises:
        InputError: the file is quantised already, not FP32, or of too old an opset.
    """

    fp32: Path
    manifest: Manifest
    calibration: CalibrationSet
    config: QuantiseConfig
    folder: Path
    labelled: GateFrames | None = None
    progress: ProgressCallback = field(default_factory=ProgressCallback)

    def __post_init__(self) -> None:
        import onnx

        self.whole = onnx.load(self.fp32)
        self.at_opt = self.manifest.at()
        self.model = fixed(self.whole, self.at_opt.inputs)
        if (opset := opset_of(self.whole)) < FEWEST_OPSET["float32"]:
            raise InputError(
                f"{self.fp32} cannot be quantised: its opset is {opset}.",
                f"Scales of one channel each came with opset {FEWEST_OPSET['float32']}.",
                "Export it again: mde export makes opset 18.",
            )
        if is_quantised(self.model) or self.manifest.precision != "fp32":
            raise InputError(
                f"{self.fp32} is {self.manifest.precision.upper()} already.",
                "INT8 is made of FP32, whose weights are whole.",
                "Name the checkpoint, or the FP32 file that it was made from.",
            )
        self.nodes = quantisable(self.model)
        self.groups = layer_groups(self.nodes)
        self.held_out: list[Frame] = []
        self.statistics = self._calibrate()

    def prepared(self, frames: Sequence[Frame]) -> list[npt.NDArray[Any]]:
        prepare = Preprocessor(self.at_opt.preprocess, self.at_opt.inputs[0].io)
        return [prepare(frame).copy() for frame in frames]

    def _calibrate(self) -> ActivationStatistics:
        total = self.calibration.count
        every = HELD_OUT_EVERY if total >= 2 * HELD_OUT_EVERY else total + 1
        every = max(every, total // MOST_HELD_OUT)

        def calibrating() -> Iterator[npt.NDArray[Any]]:
            prepare = Preprocessor(self.at_opt.preprocess, self.at_opt.inputs[0].io)
            for number, image in enumerate(self.calibration.images(self.at_opt.preprocess)):
                if number % every == every - 1:
                    self.held_out.append(image[0].copy())
                else:
                    yield prepare(image[0])

        tensors = calibrated_tensors(self.model, self.nodes, self.config.scheme)
        self.progress.stage("calibrating", total - total // every)
        found = collect(self.model, tensors, calibrating(), on_frame=self._step)
        if not self.held_out:  # too few to spare one
            self.held_out = [image[0].copy() for image in self.calibration.images(self.at_opt.preprocess)]
        return found

    def _step(self, done: int) -> None:
        self.progress.step()

    @cached_property
    def ranges(self) -> Ranges:
        self.progress.stage("choosing ranges", 0)
        return self.statistics.ranges(self.config.method, symmetric=self.config.scheme == "gpu")

    @cached_property
    def domain_problem(self) -> str | None:
        """Why the calibration set looks unlike the package's own photographs; None where it does not."""
        images = self.prepared(reference_frames())
        observed = collect(self.model, [*self.statistics.tensors], images)
        return coverage(self.statistics, observed).problem

    @cached_property
    def base(self) -> onnx.ModelProto:
        """What stays floating point: FP16 for GPUs, FP32 for CPUs."""
        if self.config.scheme == "cpu":
            return self.whole
        import onnx

        self.progress.stage("converting the rest to FP16", 0)
        frames = self.held_out[:: -(-len(self.held_out) // CAST_FRAMES)]
        half = to_fp16(self.fp32, frames, self.at_opt.preprocess, self.at_opt.inputs[0])
        check_range(self.fp32, half, self.prepared(frames))
        if opset_of(half) < FEWEST_OPSET["float16"]:
            half = onnx.version_converter.convert_version(half, FEWEST_OPSET["float16"])
        return half

    def make(self, nodes: Sequence[str]) -> onnx.ModelProto:
        """A candidate whose `nodes` multiply in INT8."""
        return quantise_nodes(self.base, nodes, self.ranges, self.config.scheme)

    @cached_property
    def sensitivity(self) -> dict[str, float]:
        """What each group does by itself, the most harmful first."""
        return self.measured_sensitivity({})

    def measured_sensitivity(
        self, known: dict[str, float], on_group: Callable[[str, float], object] = lambda group, sensitivity: None
    ) -> dict[str, float]:
        """The same, but what is known already is not measured again."""
        frames = self.held_out[:: -(-len(self.held_out) // DAMAGE_FRAMES)]
        self.progress.stage("quantising one group of layers at a time", len(self.groups) - len(known))

        def measured(group: str, sensitivity: float) -> None:
            on_group(group, sensitivity)
            self.progress.step()

        return measure_sensitivity(
            self.model, self.groups, self.ranges, self.config.scheme, self.prepared(frames), known, measured
        )

    @cached_property
    def evaluator(self) -> AccuracyEvaluator:
        shared = self.statistics.frames == self.calibration.count
        held_out = "the very ones that were calibrated on: too few to hold some out" if shared else "held out"
        unmeasured = [_unmeasured(number, frame) for number, frame in enumerate(self.held_out)]
        frames = self.labelled or GateFrames(
            samples=InMemory(samples=unmeasured),
            protocol=None,
            data=f"the calibration set {self.calibration.name}, {held_out}",
        )
        folder = self.folder / "fp32-depth"
        folder.mkdir(exist_ok=True)
        self.progress.stage("FP32 depth to compare with", len(frames.samples))
        return AccuracyEvaluator(self.fp32, self.manifest, frames, folder, self.progress.step)

    def accuracy(self, nodes: Sequence[str]) -> Accuracy:
        """What a candidate costs."""
        import onnx

        evaluator, path = self.evaluator, self.folder / "candidate.onnx"
        onnx.save(self.make(nodes), path)
        self.progress.stage(f"judging {len(nodes)} of {len(self.nodes)} layers in INT8", len(evaluator.frames.samples))
        return evaluator.evaluate(path, self.described(nodes), self.config.max_loss)

    def without(self, groups: Sequence[str]) -> tuple[str, ...]:
        """All nodes that may be quantised, but those of `groups`."""
        back = {node for group in groups for node in self.groups[group]}
        return tuple(node for node in self.nodes if node not in back)

    def fit(self) -> Fitted:
        """Give groups of layers back to floating point, the most harmful first, until the gate holds.

        The fewest are found by halving; what is returned was judged itself. With `force` nothing is given back.

        Raises:
            GateError: the gate does not hold even with one group left in INT8.
        """
        trail = [(0, self.accuracy(self.nodes))]
        if trail[0][1].holds or self.config.force:
            return Fitted(nodes=self.nodes, fp_fallback=(), accuracy=trail[0][1], trail=tuple(trail))
        order = [*self.sensitivity]
        fails, most = 0, len(order) - 1
        holds: tuple[int, Accuracy] | None = None
        while fails + 1 < (holds[0] if holds else most + 1):
            count = (fails + (holds[0] if holds else most + 1)) // 2
            found = self.accuracy(self.without(order[:count]))
            trail.append((count, found))
            if found.holds:
                holds = (count, found)
            else:
                fails = count
        if holds is None:
            raise self._refused(trail)
        back = tuple(order[: holds[0]])
        return Fitted(nodes=self.without(back), fp_fallback=back, accuracy=holds[1], trail=tuple(trail))

    def _refused(self, trail: Sequence[tuple[int, Accuracy]]) -> GateError:
        """What was tried, and what harms most."""
        tried = "; ".join(f"{count} given back: {found.loss:+.2%}" for count, found in trail)
        worst = ", ".join(f"{group} ({sensitivity:.2%})" for group, sensitivity in list(self.sensitivity.items())[:3])
        return GateError(
            "INT8 costs more depth than allowed, however much goes back to floating point; nothing was written.",
            f"{trail[0][1]}. Of {len(self.groups)} groups of layers, with {tried}. Worst by themselves: {worst}.",
            TOO_MUCH_CURE,
        )

    def described(self, nodes: Sequence[str]) -> Manifest:
        """The manifest of a candidate, as far as it is known before it was judged."""
        return replace(self.manifest, precision="int8", quantisation=self._quantisation(nodes, (), None))

    def _quantisation(self, nodes: Sequence[str], back: tuple[str, ...], accuracy: Accuracy | None) -> Quantisation:
        return Quantisation(
            scheme=self.config.scheme,
            method=self.config.method,
            calibration=self.calibration.name,
            calibration_sha256=self.calibration.sha256,
            calibration_frames=self.statistics.frames,
            int8_nodes=tuple(nodes),
            fp_fallback=back,
            accuracy=accuracy,
            forced=accuracy is not None and not accuracy.holds,
            domain_problem=self.domain_problem,
        )

    def write(self, output: Path, fitted: Fitted, parent_sha256: str) -> Manifest:
        """Write what was fitted, with its manifest and the reference depth of its FP32 file.

        Raises:
            GateError: it does not hold the gate, or is off its FP32 file at one of its sizes, and not by force.
        """
        import onnx

        if not self.config.force:
            check_accuracy(fitted.accuracy)
        candidate = self.folder / "int8.onnx"
        model = self.make(fitted.nodes)
        onnx.save(model, candidate)
        manifest = replace(
            self.manifest,
            artefact_sha256=sha256_of(candidate),
            parent_sha256=parent_sha256,
            precision="int8",
            opset=opset_of(model),
            quantisation=self._quantisation(fitted.nodes, fitted.fp_fallback, fitted.accuracy),
        )
        sessions = (OnnxRuntimeSession(candidate, manifest, each) for each in at_every_size(manifest, CPU))
        limits = LIMITS_ELSEWHERE["int8"]
        parity = worst_parity(measure_parity_with(each, self.fp32, self.manifest, f"{limits}") for each in sessions)
        if not limits.hold(parity):
            if not self.config.force:
                raise GateError(
                    "INT8 is too far off FP32 on the package's photographs; nothing was written.",
                    f"Over {parity.frames} frames, at all sizes of the file: {figures(parity)}; the limit is {limits}. "
                    + (self.domain_problem or "The frames it was calibrated on may be of another kind."),
                    "Calibrate on the camera's own pictures, narrow --dynamic, or --force it: marked as failed.",
                )
            quantisation = replace(self._quantisation(fitted.nodes, fitted.fp_fallback, fitted.accuracy), forced=True)
            manifest = replace(manifest, quantisation=quantisation)
        write_artefact(output, candidate.read_bytes(), replace(manifest, parity=parity))
        copy_reference(self.fp32, output)
        return replace(manifest, parity=parity)


def _unmeasured(number: int, frame: Frame) -> Sample:
    """A picture to judge on; what depth it shows is not known."""
    return Sample(f"{number}", frame, np.zeros(frame.shape[:2], np.float32))
