"""Verify that an artefact computes correct depth on this device, and the same depth every time.

Correct depth is what PyTorch computed in FP32 at export (`artefact.Reference`), and what the ONNX file gives on the
CPU. Repeated runs must agree bit for bit, or within rounding, whatever ran in between. Builders do produce engines that
are fast and wrong, overheated or overclocked GPUs do miscalculate, and a missing synchronisation in a runtime shows up
once in a thousand runs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.artefact import SHIPPED, Artefact, Reference, reference_path
from mirrordepth_edge.backends.base import Session
from mirrordepth_edge.backends.onnxruntime import NAME as ONNXRUNTIME
from mirrordepth_edge.backends.onnxruntime import OnnxRuntimeSession
from mirrordepth_edge.errors import GateError, InputError
from mirrordepth_edge.export.parity import (
    CPU,
    LIMITS_ELSEWHERE,
    LIMITS_ENGINE,
    Limits,
    batches,
    figures,
    measure_agreement,
    reference_frames,
)
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Preprocessor
from mirrordepth_edge.manifest import Manifest, manifest_path, read_manifest

Inputs = Sequence[npt.NDArray[Any]]
"""Network inputs, one array per run."""

REPEATS: Final = 10
ROUNDINGS: Final = {"fp32": 2e-5, "tf32": 1e-3, "fp16": 1e-3, "bf16": 8e-3, "int8": 1e-3}
"""Largest accepted relative difference of a pixel between two runs on the same input, by arithmetic type: two units in
the last place, which is what rounding alone can cause.

Engines return the same bits on every run, except for random filling and scattering, which these networks do not use
(https://docs.nvidia.com/deeplearning/tensorrt/latest/architecture/how-trt-works.html); other runtimes may add in
another order. Reordering all additions, which is more than that, changes `nano` by up to 9.9e-6 in FP32 and 7.1e-4 in
FP16 (ONNX Runtime with and without graph optimisation, and OpenVINO). Integer sums do not depend on the order. A
quantisation step that flips, because of layers in floating point, changes depth by up to 6e-2, as a fault would, and is
reported as one."""
SLOWED: Final = 1.1
"""Ratio of the time of the last runs to that of the first, above which the device is reported as slowed down."""
TIMED: Final = 200
"""Number of runs at the beginning and at the end whose times are compared."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Measured depth compared with known depth."""

    against: str
    frames: int
    max_relative: float
    """Largest |depth - known| / known over all pixels of all frames; infinite for NaN."""
    mean_relative: float
    block_relative: float | None
    """Largest mean of the same over a block of `BLOCK_PX` x `BLOCK_PX` pixels."""
    limits: Limits

    @property
    def holds(self) -> bool:
        return self.limits.hold(self)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Repeated runs, each compared with the first run on the same input."""

    runs: int
    inputs: int
    """Number of different inputs, used in turn."""
    seconds: float
    values: int
    """Number of depth values in all runs. The next three fields count the invalid ones."""
    nan: int
    infinite: int
    not_positive: int
    differing: int
    """Number of runs that are not bit-identical to the first."""
    first_differing: int | None
    """Number of the first such run, counted from 1."""
    max_relative: float
    """Largest |depth - first| / first over all pixels of all runs; infinite for NaN. 0 if none differs."""
    max_m: float
    """Largest |depth - first|, metres."""
    roundings: float
    """Largest `max_relative` that rounding alone can cause, from `ROUNDINGS`."""
    first_ms: float
    """Median of the first `TIMED` runs."""
    last_ms: float
    """Median of the last `TIMED` runs."""

    @property
    def valid(self) -> bool:
        return not (self.nan or self.infinite or self.not_positive)

    @property
    def steady(self) -> bool:
        """Whether depth is the same in every run, within rounding."""
        return self.max_relative <= self.roundings

    @property
    def slowed(self) -> bool:
        return self.last_ms > SLOWED * self.first_ms


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report."""

    what: str
    found: str
    limit: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Result of verifying an artefact on this device."""

    artefact_sha256: str
    backend: str
    version: str
    device: str
    precision: str
    comparisons: tuple[Comparison, ...]
    range_m: tuple[float, float]
    """Smallest and largest depth of the first runs, metres."""
    repeats: Runs
    soak: Runs | None
    notes: tuple[str, ...]
    """What could not be checked, and why."""

    def checks(self) -> tuple[Check, ...]:
        """Return every check with its result, for reports."""
        nearest, farthest = self.range_m
        checks = [
            Check(
                what=f"depth against {comparison.against}",
                found=f"{figures(comparison)}, {_count(comparison.frames, 'frame')}",
                limit=str(comparison.limits),
                holds=comparison.holds,
            )
            for comparison in self.comparisons
        ]
        checks += _checks_of("repeats", self.repeats, f", {nearest:.2f} to {farthest:.2f} m")
        if self.soak is not None:
            checks += _checks_of("soak", self.soak)
        return tuple(checks)

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks())

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; numbers that are not finite become null."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain | {"holds": self.holds, "checks": [asdict(check) for check in self.checks()]}


def _checks_of(name: str, runs: Runs, suffix: str = "") -> tuple[Check, Check]:
    bad = f"{runs.nan} NaN, {runs.infinite} infinite, {runs.not_positive} not above 0 m"
    duration = f"{runs.seconds / 60:.1f} min" if runs.seconds >= 60 else f"{runs.seconds:.1f} s"
    speed = f"{runs.first_ms:.1f} ms per run"
    if runs.slowed:
        speed += f" at first, {runs.last_ms:.1f} ms at the end"
    return (
        Check(what=f"{name}, values", found=f"{runs.values} depths: {bad}{suffix}", limit="none", holds=runs.valid),
        Check(
            what=f"{name}, same depth",
            found=f"{_count(runs.runs, 'run')} in {duration}: {_sameness(runs)}; {speed}",
            limit=f"bit-identical, or worst pixel <= {runs.roundings:g} relative (rounding)",
            holds=runs.steady,
        ),
    )


def _sameness(runs: Runs) -> str:
    if not runs.differing:
        return "all bit-identical"
    meaning = "within rounding" if runs.steady else "depth is sometimes wrong"
    return (
        f"{runs.differing} not bit-identical, first in run {runs.first_differing}, by up to {runs.max_relative:.1e} "
        f"relative and {runs.max_m:.2g} m: {meaning}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def verify(
    session: Session,
    artefact: Artefact,
    manifest: Manifest,
    *,
    soak_s: float = 0.0,
    on_soak: Callable[[float], object] = lambda elapsed_s: None,
    clock: Callable[[], float] = perf_counter,
) -> Verification:
    """Compare an opened artefact with its known depth, then run it repeatedly.

    Args:
        artefact: the file that the session runs; its reference, and the ONNX file of a plan, are read from beside it.
        manifest: its manifest at the session's size, as `open_session` returns it.
        soak_s: seconds of additional runs; 0 for none.
        on_soak: called after each of these runs with the seconds since their start.
        clock: current time in seconds.

    Raises:
        InputError: there is neither a reference nor an ONNX file, or one of them is damaged.
        DeviceError: the GPU failed.
    """
    path, reference, onnx = artefact.path, artefact.reference, _source_onnx(artefact, manifest, session)
    notes = []
    if reference is None:
        notes.append(f"not compared with PyTorch: {reference_path(path).name}, which mde export writes, is missing")
    elif (size_hw := session.inputs[0].size[1:]) != reference.depth_m.shape[1:]:
        notes.append(f"not compared with PyTorch: its depth was stored for another size than {size_hw[0]}x{size_hw[1]}")
        reference = None
    if isinstance(onnx, str):
        notes.append(f"not compared with ONNX Runtime: {onnx}")
    if reference is None and isinstance(onnx, str):
        raise InputError(
            f"There is nothing to compare the depth of {path} with.",
            "; ".join(notes) + ".",
            f"Copy {reference_path(path).name}, or the ONNX file with its manifest, beside it; or make it again with "
            "mde export.",
        )
    inputs = package_inputs(manifest)
    comparisons = []
    if reference is not None:
        size = session.inputs[0].shape[0]
        inputs = [
            np.ascontiguousarray(reference.batch(first, size)[0]) for first in range(0, len(reference.images), size)
        ]
        limits = LIMITS_ELSEWHERE[session.precision]
        comparisons.append(_compare(session, reference, "PyTorch in FP32, stored at export", limits))
    if not isinstance(onnx, str):
        comparisons.append(_compare_with_onnx(session, onnx, inputs, manifest))
    first_m = _first_depths(session, inputs)
    repeats = _repeat(session, inputs, first_m, clock=clock)
    soak = None
    if soak_s > 0:
        started = clock()

        def is_soaking(runs: int) -> bool:
            elapsed_s = clock() - started
            on_soak(elapsed_s)
            return elapsed_s < soak_s

        soak = _repeat(session, inputs, first_m, is_soaking, clock)
    return Verification(
        artefact_sha256=manifest.artefact_sha256,
        backend=session.backend,
        version=session.version,
        device=session.device,
        precision=session.precision,
        comparisons=tuple(comparisons),
        range_m=(float(min(depth_m.min() for depth_m in first_m)), float(max(depth_m.max() for depth_m in first_m))),
        repeats=repeats,
        soak=soak,
        notes=tuple(notes),
    )


def check_verification(verification: Verification, name: str) -> None:
    """Check that everything holds.

    Raises:
        GateError: a check failed.
    """
    _check(
        verification.checks(),
        f"{name} fails on {verification.device}, in {verification.backend} {verification.version}.",
        "Build or export it again here. If it still fails, try another precision or backend, let the device cool, "
        "reset its clocks, and report it with the output of mde doctor.",
    )


def require_repeatable(session: Session, manifest: Manifest, name: str) -> None:
    """Run the package's photos repeatedly, before an engine is written; the session stays open.

    Raises:
        GateError: depth is NaN, infinite or not positive, or differs between runs.
    """
    inputs = package_inputs(manifest)
    _check(
        _checks_of("repeats", _repeat(session, inputs, _first_depths(session, inputs))),
        f"{name} is not reliable in {session.backend} {session.version}; nothing was written.",
        "Build it again, or in another precision. If it still fails, report it with the output of mde doctor.",
    )


def _check(checks: Sequence[Check], what: str, cure: str) -> None:
    if failed := [check for check in checks if not check.holds]:
        raise GateError(
            what, "\n".join(f"{check.what}: {check.found} (limit: {check.limit})" for check in failed), cure
        )


def package_inputs(manifest: Manifest) -> Inputs:
    """The package's own photos as network inputs."""
    (image,) = manifest.inputs
    return list(batches(reference_frames(), Preprocessor(manifest.preprocess, image.io), image.shape[0]))


def _source_onnx(artefact: Artefact, manifest: Manifest, session: Session) -> Artefact | str:
    """The ONNX file to compare with, or the reason why there is none."""
    if artefact.kind == "onnx":
        is_same_run = session.backend == ONNXRUNTIME and session.device == "cpu"
        return "this is the ONNX file itself on the CPU" if is_same_run else artefact
    beside = artefact.path.with_suffix(".onnx")
    candidates = [path for path in (beside, *SHIPPED.values()) if path.is_file() and manifest_path(path).is_file()]
    for path in candidates:
        # Manifests are compared first, so that only the file that is used is hashed.
        if read_manifest(path, verify=False).artefact_sha256 == manifest.parent_sha256:
            return Artefact.open(path)
    if beside in candidates:
        return f"{beside.name} is not the file it was built from"
    return f"{beside.name} and its manifest are not beside it"


def _compare_with_onnx(session: Session, onnx: Artefact, inputs: Inputs, manifest: Manifest) -> Comparison:
    source = onnx.manifest
    (image,), (depth,), (batch, height, width) = source.inputs, source.outputs, session.inputs[0].size
    options = replace(CPU, network_hw=(height, width), batch=batch)
    with OnnxRuntimeSession(onnx.path, source, options) as cpu:
        depths_m = [cpu.infer({image.name: images})[depth.name].copy() for images in inputs]
        name = f"{onnx.name} in {cpu.backend} {cpu.version} on the CPU"
    limits: dict[Any, Limits] = LIMITS_ENGINE if manifest.kind == "plan" else LIMITS_ELSEWHERE
    reference = Reference(np.concatenate(inputs), np.concatenate(depths_m))
    return _compare(session, reference, name, limits[session.precision])


def _compare(session: Session, reference: Reference, against: str, limits: Limits) -> Comparison:
    parity = measure_agreement(session, reference)
    return Comparison(
        against=against,
        frames=parity.frames,
        max_relative=parity.max_relative,
        mean_relative=parity.mean_relative,
        block_relative=parity.block_relative,
        limits=limits,
    )


def _first_depths(session: Session, inputs: Inputs) -> list[DepthMap]:
    (image,), (depth,) = session.inputs, session.outputs
    return [session.infer({image.name: images})[depth.name].copy() for images in inputs]


def _repeat(
    session: Session,
    inputs: Inputs,
    first_m: Sequence[DepthMap],
    continues: Callable[[int], bool] | None = None,
    clock: Callable[[], float] = perf_counter,
) -> Runs:
    """Run each input at least once, then while `continues(number of runs)`: by default `REPEATS` times each."""
    (image,), (depth,) = session.inputs, session.outputs
    continues = continues or (lambda runs: runs < REPEATS * len(inputs))
    first_invalid = [_count_invalid(depth_m) for depth_m in first_m]
    invalid = np.zeros(3, np.int64)
    early_ms: list[float] = []
    late_ms: deque[float] = deque(maxlen=TIMED)
    differing, first_differing, max_relative, max_m = 0, None, 0.0, 0.0
    runs, values, started = 0, 0, clock()
    while runs < len(inputs) or continues(runs):
        # Inputs take turns, so that no run passes because its depth was left in a buffer by the one before.
        index = runs % len(inputs)
        run_started = clock()
        depth_m = session.infer({image.name: inputs[index]})[depth.name]
        late_ms.append((clock() - run_started) * 1e3)
        if runs < TIMED:
            early_ms.append(late_ms[-1])
        runs += 1
        values += depth_m.size
        if _same_bits(depth_m, first_m[index]):
            invalid += first_invalid[index]
            continue
        invalid += _count_invalid(depth_m)
        differing += 1
        first_differing = first_differing or runs
        relative, metres = _difference(depth_m, first_m[index])
        max_relative, max_m = max(max_relative, relative), max(max_m, metres)
    nan, infinite, not_positive = map(int, invalid)
    # Builders and CUDA multiply FP32 in TF32 by default.
    arithmetic = "tf32" if session.precision == "fp32" and session.device != "cpu" else session.precision
    return Runs(
        runs=runs,
        inputs=len(inputs),
        seconds=clock() - started,
        values=values,
        nan=nan,
        infinite=infinite,
        not_positive=not_positive,
        differing=differing,
        first_differing=first_differing,
        max_relative=max_relative,
        max_m=max_m,
        roundings=ROUNDINGS[arithmetic],
        first_ms=median(early_ms),
        last_ms=median(late_ms),
    )


def _same_bits(one: DepthMap, other: DepthMap) -> bool:
    # As integers, so that NaN equals NaN and -0 differs from 0.
    return np.array_equal(one.view(np.uint32), other.view(np.uint32))


def _count_invalid(depth_m: DepthMap) -> npt.NDArray[np.int64]:
    """Count the depths that are NaN, infinite, and otherwise not above 0."""
    nan, infinite = np.isnan(depth_m), np.isinf(depth_m)
    bad = ~(depth_m > 0) & ~nan & ~infinite
    return np.array([nan.sum(), infinite.sum(), bad.sum()], np.int64)


def _difference(depth_m: DepthMap, first_m: DepthMap) -> tuple[float, float]:
    """Largest relative and absolute difference; infinite if one is not finite."""
    with np.errstate(all="ignore"):
        metres = np.abs(depth_m.astype(np.float64) - first_m)
        both = np.nan_to_num([metres / np.abs(first_m), metres], nan=np.inf, posinf=np.inf)
    return float(both[0].max()), float(both[1].max())
