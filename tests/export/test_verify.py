"""Verification detects each kind of wrong depth, on fake sessions and on the package's own files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mirrordepth_edge.artefact import NANO_ONNX, Artefact, Reference, read_reference, reference_path, write_reference
from mirrordepth_edge.backends.base import Arrays, CheckedSession
from mirrordepth_edge.backends.registry import open_session
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import GateError, InputError
from mirrordepth_edge.export.parity import LIMITS_ELSEWHERE
from mirrordepth_edge.export.verify import check_verification, require_repeatable, verify
from mirrordepth_edge.manifest import EngineInfo, Manifest, TensorSpec, read_manifest, write_artefact
from mirrordepth_edge.support.files import sha256_of

HEIGHT, WIDTH, FRAMES = 4, 6, 3
Fault = Callable[[int, Any], Any]
"""Maps the number of a run, counted from 1, and its correct depth to the depth that is returned."""


def depth_of(image: Any) -> Any:
    """Depth of the test network: the mean of a pixel over its channels, plus 1; float32 `[N, H, W]`, metres."""
    return (image.astype(np.float64).mean(3) + 1).astype(np.float32)


class Device(CheckedSession):
    """Fake session of the network above that can return wrong depth, in one reused output array."""

    backend, version, device, precision = "tensorrt", "10.3.0", "Fake GPU", "fp16"

    def __init__(self, manifest: Manifest, fault: Fault = lambda run, depth: depth) -> None:
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        self._fault, self.run = fault, 0
        self._out = np.empty(self.outputs[0].shape, np.float32)

    def infer(self, feeds: Mapping[str, Any]) -> Arrays:
        self.check(feeds)
        self.run += 1
        self._out[:] = self._fault(self.run, depth_of(feeds["image"]))
        return {"depth": self._out}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Manifest]:
    """An ONNX file of the network, and a plan made from it, with its reference."""
    shapes = (1, HEIGHT, WIDTH, 3), (1, HEIGHT, WIDTH)
    nodes = [
        helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["wide", "axes"], ["mean"], keepdims=0),
        helper.make_node("Add", ["mean", "one"], ["depth"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [3]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, shapes[0])
    depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, shapes[1])
    graph = helper.make_graph(nodes, "tiny", [image], [depth], constants)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    path = tmp_path / "tiny.onnx"
    onnx.save(model, path)
    base = read_manifest(NANO_ONNX["fp32"])
    source = replace(
        base,
        artefact_sha256=sha256_of(path),
        preprocess=replace(base.preprocess, size_hw=(HEIGHT, WIDTH)),
        inputs=(TensorSpec(name="image", dtype="uint8", shape=shapes[0], layout="NHWC", range="0..255", unit="RGB"),),
        outputs=(TensorSpec(name="depth", dtype="float32", shape=shapes[1], layout="NHW", range="> 0", unit="metres"),),
    )
    write_artefact(path, path.read_bytes(), source)
    plan = tmp_path / "tiny.plan"
    plan.write_bytes(b"a plan")
    engine = EngineInfo(flavour="tensorrt", version="10.3.0", compute_capabilities=("8.7",), build_seconds=1.0)
    manifest = replace(
        source,
        kind="plan",
        artefact_sha256=sha256_of(plan),
        parent_sha256=source.artefact_sha256,
        precision="fp16",
        engine=engine,
    )
    write_artefact(plan, b"a plan", manifest)
    images = np.random.default_rng(0).integers(0, 256, (FRAMES, *shapes[0][1:]), np.uint8)
    write_reference(plan, Reference(images, depth_of(images)))
    return plan, manifest


def ticking(step_s: float = 0.5) -> Callable[[], float]:
    """A clock that advances by a step on each call."""
    now = [0.0]

    def clock() -> float:
        now[0] += step_s
        return now[0]

    return clock


def test_correct_depth_passes(files: tuple[Path, Manifest]) -> None:
    plan, manifest = files
    device = Device(manifest)
    result = verify(device, Artefact.open(plan), manifest)
    assert result.holds
    check_verification(result, "tiny.plan")
    stored, onnx_depth = result.comparisons
    assert stored.against == "PyTorch in FP32, stored at export"
    assert (stored.frames, stored.max_relative, stored.mean_relative) == (FRAMES, 0.0, 0.0)
    assert onnx_depth.against.startswith("tiny.onnx in onnxruntime")
    assert onnx_depth.max_relative < 1e-6  # another order of additions
    assert (result.repeats.runs, result.repeats.inputs) == (10 * FRAMES, FRAMES)
    assert result.repeats.values == 10 * FRAMES * HEIGHT * WIDTH
    assert (result.repeats.differing, result.repeats.first_differing) == (0, None)
    reference = read_reference(plan)
    assert reference is not None
    assert result.range_m == (reference.depth_m.min(), reference.depth_m.max())
    assert (result.soak, result.notes) == (None, ())
    assert all("bit-identical" in check.found for check in result.checks() if "same depth" in check.what)


def scaled(run: int, depth: Any) -> Any:
    return depth * np.float32(1.05)


def nan_once(run: int, depth: Any) -> Any:
    return np.where((run == 20) & (np.arange(WIDTH) == 2), np.float32(np.nan), depth)


def always_nan(run: int, depth: Any) -> Any:
    return np.where(np.arange(WIDTH) == 2, np.float32(np.nan), depth)


def infinite(run: int, depth: Any) -> Any:
    return np.where(np.arange(WIDTH) == 2, np.float32(np.inf), depth) if run > 20 else depth


def negative(run: int, depth: Any) -> Any:
    return -depth


def jumping(run: int, depth: Any) -> Any:
    return depth * np.float32(1 + 0.05 * (run % 7 == 0))


def one_pixel(run: int, depth: Any) -> Any:
    """Too small to change the mean."""
    wrong = depth.copy()
    wrong[0, 1, 2] *= 1.2 if run == 23 else 1
    return wrong


def drifting(run: int, depth: Any) -> Any:
    return depth * np.float32(1 + 0.002 * max(0, run - 15))


def upside_down(run: int, depth: Any) -> Any:
    """Correct values in wrong places, once."""
    return depth[:, ::-1] if run == 17 else depth


def nearly(run: int, depth: Any) -> Any:
    """More than FP16 rounding, but invisible: 4 mm per metre in one run."""
    return depth * np.float32(1.004 if run == 25 else 1)


@pytest.mark.parametrize(
    ("fault", "failing"),
    [
        (nearly, {"repeats, same depth"}),
        (scaled, {"depth against"}),
        (always_nan, {"depth against", "repeats, values"}),
        (nan_once, {"repeats, values", "repeats, same depth"}),
        (infinite, {"repeats, values", "repeats, same depth"}),
        (negative, {"depth against", "repeats, values"}),
        (jumping, {"repeats, same depth"}),
        (one_pixel, {"repeats, same depth"}),
        (drifting, {"repeats, same depth"}),
        (upside_down, {"repeats, same depth"}),
    ],
)
@pytest.mark.filterwarnings("error")
def test_fault_is_detected(fault: Fault, failing: set[str], files: tuple[Path, Manifest]) -> None:
    plan, manifest = files
    result = verify(Device(manifest, fault), Artefact.open(plan), manifest)
    failed = {check.what for check in result.checks() if not check.holds}
    assert {next((name for name in failing if what.startswith(name)), what) for what in failed} == failing
    with pytest.raises(GateError, match=r"tiny\.plan fails on Fake GPU") as caught:
        check_verification(result, "tiny.plan")
    assert caught.value.exit_code == 3
    assert all(what in caught.value.why for what in failed)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["holds"] is False


def test_figures_match_the_fault(files: tuple[Path, Manifest]) -> None:
    plan, manifest = files
    result = verify(Device(manifest, scaled), Artefact.open(plan), manifest)
    for comparison in result.comparisons:
        assert comparison.mean_relative == pytest.approx(0.05, rel=1e-5)
        assert comparison.max_relative == pytest.approx(0.05, rel=1e-4)
    # 3 runs against the reference, 3 against ONNX, 3 first ones: run 23 is the 14th of the repeats, on the 2nd frame.
    reference = read_reference(plan)
    assert reference is not None
    result = verify(Device(manifest, one_pixel), Artefact.open(plan), manifest)
    assert (result.repeats.differing, result.repeats.first_differing) == (1, 14)
    assert result.repeats.max_relative == pytest.approx(0.2, rel=1e-5)
    assert result.repeats.max_m == pytest.approx(0.2 * reference.depth_m[1, 1, 2], rel=1e-5)
    result = verify(Device(manifest, nan_once), Artefact.open(plan), manifest)
    assert (result.repeats.nan, result.repeats.infinite, result.repeats.not_positive) == (HEIGHT, 0, 0)
    assert math.isinf(result.repeats.max_relative)
    assert result.to_json()["repeats"]["max_relative"] is None
    result = verify(Device(manifest, always_nan), Artefact.open(plan), manifest)
    assert (result.repeats.nan, result.repeats.differing) == (10 * FRAMES * HEIGHT, 0)  # always the same bits
    result = verify(Device(manifest, negative), Artefact.open(plan), manifest)
    assert result.repeats.not_positive == result.repeats.values


def test_rounding_is_reported_and_passes(files: tuple[Path, Manifest]) -> None:
    plan, manifest = files

    def rounding(run: int, depth: Any) -> Any:
        return np.nextafter(depth, np.float32(np.inf)) if run % 2 else depth

    result = verify(Device(manifest, rounding), Artefact.open(plan), manifest)
    assert result.holds
    assert result.repeats.differing > 0
    assert 0 < result.repeats.max_relative <= 2**-23
    (same,) = [check for check in result.checks() if check.what == "repeats, same depth"]
    assert "not bit-identical" in same.found
    assert "within rounding" in same.found
    assert same.limit == "bit-identical, or worst pixel <= 0.001 relative (rounding)"


@pytest.mark.parametrize(
    ("precision", "on", "rounding", "fault"),
    [
        ("fp32", "cpu", 2**-23, 5e-5),
        ("fp32", "Fake GPU", 2**-11, 2e-3),  # in TF32
        ("fp16", "Fake GPU", 2**-11, 2e-3),
        ("bf16", "cpu", 2**-8, 2e-2),
        ("int8", "Fake GPU", 2**-11, 2e-3),  # of what is not quantised
    ],
)
def test_rounding_limit_depends_on_the_arithmetic(
    precision: str, on: str, rounding: float, fault: float, files: tuple[Path, Manifest]
) -> None:
    """One unit in the last place passes; several fail."""
    plan, manifest = files
    plan.with_suffix(".onnx").unlink()
    for off, holds in ((rounding, True), (fault, False)):
        once = np.float32(1 + off)
        device = Device(manifest, lambda run, depth, once=once: depth * (once if run == 25 else np.float32(1)))
        device.precision, device.device = precision, on
        (_, same) = [
            check
            for check in verify(device, Artefact.open(plan), manifest).checks()
            if check.what.startswith("repeats")
        ]
        assert same.holds is holds, same.found
        assert "1 not bit-identical" in same.found


def test_soak_detects_late_faults(files: tuple[Path, Manifest]) -> None:
    plan, manifest = files

    def after_a_while(run: int, depth: Any) -> Any:
        return depth * np.float32(1.5) if run >= 60 else depth

    reported_s: list[float] = []
    result = verify(
        Device(manifest, after_a_while),
        Artefact.open(plan),
        manifest,
        soak_s=100.0,
        on_soak=reported_s.append,
        clock=ticking(0.5),
    )
    assert result.repeats.differing == 0
    assert result.soak is not None
    # 9 runs before the repeats and 30 in them: run 60 is the 21st of the soak.
    assert result.soak.first_differing == 21
    assert result.soak.differing == result.soak.runs - 20
    assert result.soak.max_relative == pytest.approx(0.5)
    assert [check.what for check in result.checks() if not check.holds] == ["soak, same depth"]
    assert reported_s == sorted(reported_s)
    assert reported_s[-1] >= 100 > reported_s[-2]
    assert result.soak.seconds == pytest.approx(100, abs=2)


def test_slowdown_is_reported(files: tuple[Path, Manifest]) -> None:
    plan, manifest = files
    device = Device(manifest)
    now = [0.0]
    calm_infer = device.infer

    def infer(feeds: Mapping[str, Any]) -> Arrays:
        now[0] += 0.004 if device.run < 700 else 0.006
        return calm_infer(feeds)

    device.infer = infer  # type: ignore[method-assign]
    result = verify(device, Artefact.open(plan), manifest, soak_s=8.0, clock=lambda: now[0])
    assert result.soak is not None
    assert result.soak.first_ms == pytest.approx(4)
    assert result.soak.last_ms == pytest.approx(6)
    assert result.soak.slowed
    assert not result.repeats.slowed
    assert result.holds  # slow is not wrong
    assert any("4.0 ms per run at first, 6.0 ms at the end" in check.found for check in result.checks())


def test_missing_reference_leaves_the_onnx_comparison(files: tuple[Path, Manifest]) -> None:
    plan, manifest = files
    reference_path(plan).unlink()
    result = verify(Device(manifest), Artefact.open(plan), manifest)
    assert result.holds
    assert len(result.comparisons) == 1
    assert "tiny.plan.reference.npz" in result.notes[0]
    assert not verify(Device(manifest, scaled), Artefact.open(plan), manifest).holds


def test_missing_onnx_file_leaves_the_reference_comparison(files: tuple[Path, Manifest]) -> None:
    plan, manifest = files
    other = replace(manifest, parent_sha256="0" * 64)
    assert (
        "tiny.onnx is not the file it was built from" in verify(Device(manifest), Artefact.open(plan), other).notes[0]
    )
    plan.with_suffix(".onnx").unlink()
    result = verify(Device(manifest), Artefact.open(plan), manifest)
    assert result.holds
    assert "tiny.onnx and its manifest are not beside it" in result.notes[0]


def test_missing_reference_and_onnx_file_is_an_error(files: tuple[Path, Manifest]) -> None:
    plan, manifest = files
    reference_path(plan).unlink()
    plan.with_suffix(".onnx").unlink()
    with pytest.raises(InputError, match="nothing to compare the depth") as caught:
        verify(Device(manifest), Artefact.open(plan), manifest)
    assert "tiny.plan.reference.npz" in caught.value.cure


def test_changed_onnx_file_is_refused(files: tuple[Path, Manifest]) -> None:
    plan, manifest = files
    path = plan.with_suffix(".onnx")
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(InputError, match="not the file its manifest describes"):
        verify(Device(manifest), Artefact.open(plan), manifest)


def test_plan_of_a_shipped_model_is_compared_with_it(tmp_path: Path) -> None:
    """Its ONNX file is in the package, not beside the plan."""
    source = read_manifest(NANO_ONNX["fp16"])
    manifest = replace(source, kind="plan", parent_sha256=source.artefact_sha256)
    with open_session(NANO_ONNX["fp16"], SessionOptions(device="cpu", threads=1))[0] as session:
        result = verify(session, Artefact(path=tmp_path / "nano.fp16.plan", kind="plan", sidecar=manifest), manifest)
    (only,) = result.comparisons
    assert only.against.startswith("nano.fp16.onnx in onnxruntime")
    assert only.max_relative < 1e-3  # threads may add in another order


def test_onnx_file_in_another_backend_is_compared_with_the_cpu(files: tuple[Path, Manifest]) -> None:
    path = files[0].with_suffix(".onnx")
    manifest = read_manifest(path)
    device = Device(manifest)
    device.backend, device.precision = "openvino", "fp32"
    result = verify(device, Artefact.open(path), manifest)
    (only,) = result.comparisons
    assert only.against.startswith("tiny.onnx in onnxruntime")
    assert only.limits == LIMITS_ELSEWHERE["fp32"]  # other kernels
    assert result.holds


def test_shipped_model_passes() -> None:
    path = NANO_ONNX["fp32"]
    session, manifest = open_session(path, SessionOptions(device="cpu", threads=1))
    assert manifest is not None
    with session:
        result = verify(session, Artefact.open(path), manifest)
    assert result.holds, result.checks()
    assert len(result.comparisons) == 1
    assert 0.1 < result.range_m[0] < result.range_m[1] < 10


def test_unrepeatable_engine_is_refused(files: tuple[Path, Manifest]) -> None:
    _, manifest = files
    require_repeatable(Device(manifest), manifest, "tiny.plan")
    for fault in (jumping, always_nan, upside_down, nearly):
        with pytest.raises(GateError, match=r"is not reliable in .*; nothing was written"):
            require_repeatable(Device(manifest, fault), manifest, "tiny.plan")
