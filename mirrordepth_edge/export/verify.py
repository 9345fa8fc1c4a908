"""Whether an artefact gives the right depth on this device, and the same depth every time.

Right is what PyTorch gave in FP32 when the artefact was exported (`deploy.reference`), and what its ONNX file gives on
the CPU. The same is: to the bit, or but for roundings, run after run, whatever was run in between. Builders do make
engines that are fast and wrong, GPUs that are hot or overclocked do add wrongly, and a missing wait in a runtime shows
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
from mirrordepth_edge.manifest import Manifest, Parity, manifest_path, read_manifest

Inputs = Sequence[npt.NDArray[Any]]
"""What the network is fed, one array a run."""

REPEATS: Final = 10
ROUNDINGS: Final = {"fp32": 2e-5, "tf32": 1e-3, "fp16": 1e-3, "bf16": 8e-3, "int8": 1e-3}
"""Worst pixel of one run against another on the same input, relative, by what is multiplied in: what other roundings
alone come to, two units in the last place. A built engine answers with the same bits each time, by NVIDIA's word for
all but random filling and scattering, of which nothing is in these networks
(https://docs.nvidia.com/deeplearning/tensorrt/latest/architecture/how-trt-works.html); elsewhere additions may come in
another order. All of them in another order, which is more than that, move `nano` by up to 9.9e-6 in FP32 and 7.1e-4 in
FP16 (ONNX Runtime's own graph against the optimised one, and against OpenVINO). INT8 adds integers, the same in any
order; a step that flips for what is not quantised moves depth by up to 6e-2, as a fault would, and is taken for one."""
SLOWED: Final = 1.1
"""Time of the last runs over that of the first ones, above which a device became slower."""
TIMED: Final = 200
"""Runs at the beginning and at the end whose times are compared."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Depth here against depth that is known."""

    against: str
    frames: int
    max_relative: float
    """Largest |depth - known| / known over all pixels of all frames; infinite for NaN."""
    mean_relative: float
    block_relative: float | None
    """Largest mean of that over `BLOCK_PX` x `BLOCK_PX` pixels."""
    limits: Limits

    @property
    def holds(self) -> bool:
        return self.limits.hold(self)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The same inputs again and again, each run held to the first one on its input."""

    runs: int
    inputs: int
    """How many different ones took turns."""
    seconds: float
    values: int
    """Depths that were looked at, in all runs; of these:"""
    nan: int
    infinite: int
    not_positive: int
    differing: int
    """Runs whose depth is not the first's to the bit."""
    first_differing: int | None
    """Number of the first such run, counted from 1."""
    max_relative: float
    """Largest |depth - first| / first over all pixels of all runs; infinite for NaN. 0 where none differs."""
    max_m: float
    """Largest |depth - first|, metres."""
    roundings: float
    """What `max_relative` comes to at most by other roundings alone (`ROUNDINGS`)."""
    first_ms: float
    """Median of the first `TIMED` runs."""
    last_ms: float
    """Median of the last `TIMED` runs."""

    @property
    def valid(self) -> bool:
        return not (self.nan or self.infinite or self.not_positive)

    @property
    def steady(self) -> bool:
        """Whether depth is the same each time, but for roundings."""
        return self.max_relative <= self.roundings

    @property
    def slowed(self) -> bool:
        return self.last_ms > SLOWED * self.first_ms


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the verdict."""

    what: str
    found: str
    limit: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found of an artefact on this device."""

    artefact_sha256: str
    backend: str
    version: str
    device: str
    precision: str
    comparisons: tuple[Comparison, ...]
    range_m: tuple[float, float]
    """Least and greatest depth of the first runs, metres."""
    repeats: Runs
    soak: Runs | None
    notes: tuple[str, ...]
    """What could not be looked at, and why."""

    def checks(self) -> tuple[Check, ...]:
        """Everything that was looked at, in words."""
        least, most = self.range_m
        found = [
            Check(
                what=f"depth against {each.against}",
                found=f"{figures(each)}, {_count(each.frames, 'frame')}",
                limit=str(each.limits),
                holds=each.holds,
            )
            for each in self.comparisons
        ]
        found += _checks_of("repeats", self.repeats, f", {least:.2f} to {most:.2f} m")
        if self.soak is not None:
            found += _checks_of("soak", self.soak)
        return tuple(found)

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks())

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite is null."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain | {"holds": self.holds, "checks": [asdict(check) for check in self.checks()]}


def _checks_of(name: str, runs: Runs, more: str = "") -> tuple[Check, Check]:
    bad = f"{runs.nan} NaN, {runs.infinite} infinite, {runs.not_positive} not above 0 m"
    return (
        Check(what=f"{name}, values", found=f"{runs.values} depths: {bad}{more}", limit="none", holds=runs.valid),
        Check(
            what=f"{name}, same depth",
            found=f"{_count(runs.runs, 'run')} in {_duration(runs.seconds)}: {_sameness(runs)}{_speed(runs)}",
            limit=f"the same bits; roundings: worst pixel <= {runs.roundings:g} relative",
            holds=runs.steady,
        ),
    )


def _sameness(runs: Runs) -> str:
    if not runs.differing:
        return "all bit-identical"
    matters = "does not matter: roundings" if runs.steady else "matters: wrong depth at times"
    return (
        f"{runs.differing} not bit-identical, from run {runs.first_differing} on by up to {runs.max_relative:.1e} "
        f"relative, {runs.max_m:.2g} m, which {matters}"
    )


def _speed(runs: Runs) -> str:
    changed = f" at first, {runs.last_ms:.1f} ms at the end" if runs.slowed else ""
    return f"; {runs.first_ms:.1f} ms a run{changed}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def verify(
    session: Session,
    artefact: Artefact,
    manifest: Manifest,
    *,
    soak_s: float = 0.0,
    on_soak: Callable[[float], object] = lambda seconds: None,
    clock: Callable[[], float] = perf_counter,
) -> Verification:
    """Hold an opened artefact to what is known of its depth, then run it again and again.

    Args:
        artefact: what the session runs; its `.reference.npz`, and for a plan its `.onnx`, are looked for beside it.
        manifest: its manifest at the session's size, as `open_session` returns it.
        soak_s: so many seconds more of repeated runs; none where 0.
        on_soak: called during those, after each run, with the seconds since they began.
        clock: seconds.

    Raises:
        InputError: neither the reference nor an ONNX file is there, or one of them is damaged.
        DeviceError: the GPU failed.
    """
    path, reference, onnx = artefact.path, artefact.reference, _source_onnx(artefact, manifest, session)
    notes = []
    if reference is None:
        notes.append(f"not held to PyTorch's depth: {reference_path(path).name}, which mde export writes, is not there")
    elif (size_hw := session.inputs[0].size[1:]) != reference.depth_m.shape[1:]:
        notes.append(f"not held to PyTorch's depth: that was stored for another size than {size_hw[0]}x{size_hw[1]}")
        reference = None
    if isinstance(onnx, str):
        notes.append(f"not held to ONNX Runtime: {onnx}")
    if reference is None and isinstance(onnx, str):
        raise InputError(
            f"There is nothing to hold the depth of {path} to.",
            "; ".join(notes) + ".",
            f"Copy {reference_path(path).name} or the ONNX file with its manifest beside it, or make it again with "
            "mde export.",
        )
    size = session.inputs[0].shape[0]
    inputs = package_inputs(manifest) if reference is None else _inputs_of(reference, size)
    comparisons = []
    if reference is not None:
        limits = LIMITS_ELSEWHERE[session.precision]
        stored = measure_agreement(session, reference)
        comparisons.append(_compared(stored, "PyTorch in FP32, stored at export", limits))
    if not isinstance(onnx, str):
        comparisons.append(_against_onnx(session, onnx, inputs, manifest))
    first = _first_depths(session, inputs)
    repeats = _repeat(session, inputs, first, lambda runs: runs < REPEATS * len(inputs), clock)
    soak = None
    if soak_s > 0:
        begun = clock()

        def going(runs: int) -> bool:
            passed = clock() - begun
            on_soak(passed)
            return passed < soak_s

        soak = _repeat(session, inputs, first, going, clock)
    return Verification(
        artefact_sha256=manifest.artefact_sha256,
        backend=session.backend,
        version=session.version,
        device=session.device,
        precision=session.precision,
        comparisons=tuple(comparisons),
        range_m=(float(min(depth.min() for depth in first)), float(max(depth.max() for depth in first))),
        repeats=repeats,
        soak=soak,
        notes=tuple(notes),
    )


def check_verification(verification: Verification, name: str) -> None:
    """Hold the gate.

    Raises:
        GateError: a check failed.
    """
    failed = [check for check in verification.checks() if not check.holds]
    if not failed:
        return
    raise GateError(
        f"{name} fails on {verification.device}, in {verification.backend} {verification.version}.",
        "\n".join(f"{check.what}: {check.found} (limit: {check.limit})" for check in failed),
        "Build or export it again here. If it stays, try another precision or backend, let the device cool and set its "
        "clocks back, and report it with what mde doctor says.",
    )


def require_repeatable(session: Session, manifest: Manifest, name: str) -> None:
    """Run the package's frames repeatedly, before an engine is written; the session stays open.

    Raises:
        GateError: depth is NaN, infinite or not positive, or another each time.
    """
    inputs = package_inputs(manifest)
    runs = _repeat(session, inputs, _first_depths(session, inputs), lambda done: done < REPEATS * len(inputs))
    if failed := [check for check in _checks_of("repeats", runs) if not check.holds]:
        raise GateError(
            f"{name} cannot be relied on in {session.backend} {session.version}; nothing was written.",
            "\n".join(f"{check.what}: {check.found} (limit: {check.limit})" for check in failed),
            "Build it again, or in another precision; if it stays, report it with what mde doctor says.",
        )


def package_inputs(manifest: Manifest) -> Inputs:
    """The package's own frames, as the network takes them."""
    (image,) = manifest.inputs
    prepare = Preprocessor(manifest.preprocess, image.io)
    return list(batches(reference_frames(), prepare, image.shape[0]))


def _inputs_of(reference: Reference, size: int) -> Inputs:
    return [np.ascontiguousarray(reference.batch(first, size)[0]) for first in range(0, len(reference.images), size)]


def _source_onnx(artefact: Artefact, manifest: Manifest, session: Session) -> Artefact | str:
    """The ONNX file to compare with, or the reason why there is none."""
    if artefact.kind == "onnx":
        is_same_run = session.backend == ONNXRUNTIME and session.device == "cpu"
        return "this is the ONNX file itself, on the CPU" if is_same_run else artefact
    beside = artefact.path.with_suffix(".onnx")
    candidates = [path for path in (beside, *SHIPPED.values()) if path.is_file() and manifest_path(path).is_file()]
    for path in candidates:
        # Manifests are compared first, so that only the file that is used is hashed.
        if read_manifest(path, verify=False).artefact_sha256 == manifest.parent_sha256:
            return Artefact.open(path)
    if beside in candidates:
        return f"{beside.name} is not the file that it was built from"
    return f"{beside.name} with its manifest is not beside it"


def _against_onnx(session: Session, onnx: Artefact, inputs: Inputs, manifest: Manifest) -> Comparison:
    source = onnx.manifest
    (image,), (depth,), (batch, height, width) = source.inputs, source.outputs, session.inputs[0].size
    options = replace(CPU, network_hw=(height, width), batch=batch)
    with OnnxRuntimeSession(onnx.path, source, options) as cpu:
        depths_m = [cpu.infer({image.name: batch_images})[depth.name].copy() for batch_images in inputs]
        name = f"{onnx.name} in {cpu.backend} {cpu.version} on the CPU"
    known = Reference(np.concatenate(inputs), np.concatenate(depths_m))
    limits: dict[Any, Limits] = LIMITS_ENGINE if manifest.kind == "plan" else LIMITS_ELSEWHERE
    return _compared(measure_agreement(session, known), name, limits[session.precision])


def _compared(parity: Parity, against: str, limits: Limits) -> Comparison:
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
    return [session.infer({image.name: each})[depth.name].copy() for each in inputs]


def _repeat(
    session: Session,
    inputs: Inputs,
    first: Sequence[DepthMap],
    going: Callable[[int], bool],
    clock: Callable[[], float] = perf_counter,
) -> Runs:
    """Run the inputs in turn, so that none finds its own depth left in a buffer, while `going(runs so far)`; at least
    once each."""
    (image,), (depth,) = session.inputs, session.outputs
    counted = [_count_invalid(each) for each in first]
    invalid = np.zeros(3, np.int64)
    early_ms: list[float] = []
    late_ms: deque[float] = deque(maxlen=TIMED)
    differing, first_differing, max_relative, max_m = 0, None, 0.0, 0.0
    runs, values, begun = 0, 0, clock()
    while runs < len(inputs) or going(runs):
        place = runs % len(inputs)
        started = clock()
        found = session.infer({image.name: inputs[place]})[depth.name]
        late_ms.append((clock() - started) * 1e3)
        if runs < TIMED:
            early_ms.append(late_ms[-1])
        runs += 1
        values += found.size
        if _same_bits(found, first[place]):
            invalid += counted[place]
            continue
        invalid += _count_invalid(found)
        differing += 1
        first_differing = first_differing or runs
        relative, metres = _difference(found, first[place])
        max_relative, max_m = max(max_relative, relative), max(max_m, metres)
    nan, infinite, not_positive = (int(each) for each in invalid)
    return Runs(
        runs=runs,
        inputs=len(inputs),
        seconds=clock() - begun,
        values=values,
        nan=nan,
        infinite=infinite,
        not_positive=not_positive,
        differing=differing,
        first_differing=first_differing,
        max_relative=max_relative,
        max_m=max_m,
        roundings=ROUNDINGS[_multiplied_in(session)],
        first_ms=median(early_ms),
        last_ms=median(late_ms),
    )


def _multiplied_in(session: Session) -> str:
    """Builders and CUDA multiply FP32 in TF32 unless told otherwise."""
    return "tf32" if session.precision == "fp32" and session.device != "cpu" else session.precision


def _same_bits(one: DepthMap, other: DepthMap) -> bool:
    """NaN is NaN here, and -0 is not 0."""
    return np.array_equal(one.view(np.uint32), other.view(np.uint32))


def _count_invalid(depth_m: DepthMap) -> npt.NDArray[np.int64]:
    """How many depths are NaN, infinite, and otherwise not above 0."""
    nan, infinite = np.isnan(depth_m), np.isinf(depth_m)
    bad = ~(depth_m > 0) & ~nan & ~infinite
    return np.array([nan.sum(), infinite.sum(), bad.sum()], np.int64)


def _difference(found: DepthMap, first: DepthMap) -> tuple[float, float]:
    """Largest relative and absolute difference, infinite where one is no number."""
    with np.errstate(all="ignore"):
        metres = np.abs(found.astype(np.float64) - first)
        relative = metres / np.abs(first)
    return tuple(float(np.nan_to_num(each, nan=np.inf, posinf=np.inf).max()) for each in (relative, metres))  # type: ignore[return-value]
