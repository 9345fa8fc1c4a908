"""Depth that is wrong in one place is detected; rounding in FP16 and INT8 passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from mirrordepth_edge.artefact import NANO_ONNX, Artefact, Reference, read_reference
from mirrordepth_edge.backends.base import Arrays, CheckedSession
from mirrordepth_edge.backends.onnxruntime import OnnxRuntimeSession
from mirrordepth_edge.errors import GateError
from mirrordepth_edge.export import parity as module
from mirrordepth_edge.export.parity import (
    CPU,
    LIMITS_ELSEWHERE,
    LIMITS_ENGINE,
    figures,
    measure_agreement,
    measure_engine_parity,
    worst_parity,
)
from mirrordepth_edge.export.verify import package_inputs
from mirrordepth_edge.graph.activations import collect
from mirrordepth_edge.manifest import Manifest, Parity, read_manifest, write_artefact
from mirrordepth_edge.quantise.qdq import calibrated_tensors, quantisable, quantise
from mirrordepth_edge.support.files import sha256_of


class Stored(CheckedSession):
    """A fake engine that returns known depths in turn."""

    backend, version, device = "tensorrt", "10.3.0", "Fake GPU"

    def __init__(self, manifest: Manifest, depths_m: Any) -> None:
        self.inputs, self.outputs, self.precision = manifest.inputs, manifest.outputs, manifest.precision
        self._depths: Iterator[Any] = iter(depths_m)

    def infer(self, feeds: Mapping[str, Any]) -> Arrays:
        self.check(feeds)
        return {self.outputs[0].name: next(self._depths)[None]}


@pytest.fixture(scope="module")
def depths_m() -> dict[str, Any]:
    """Depth of both shipped files for the package's photos on the CPU, `[N, H, W]`."""
    found = {}
    for precision, path in NANO_ONNX.items():
        manifest = read_manifest(path)
        with OnnxRuntimeSession(path, manifest, CPU) as session:
            inputs = package_inputs(manifest)
            found[precision] = np.concatenate(
                [session.infer({manifest.inputs[0].name: each})[manifest.outputs[0].name].copy() for each in inputs]
            )
    return found


def patched(depths_m: Any, top: int, left: int, height: int, width: int, farther: float) -> Any:
    """Depths with a wrong patch in one frame."""
    wrong = depths_m.copy()
    wrong[1, top : top + height, left : left + width] *= farther
    return wrong


PATCHES = [
    pytest.param((top, left, 12, 10, 3.0), id=f"12x10 px three times too far at {top}, {left}")
    for top, left in ((40, 56), (42, 59), (47, 63), (0, 0), (212, 278))
] + [
    pytest.param((top, left, 32, 64, 1.2), id=f"32x64 px a fifth too far at {top}, {left}")
    for top, left in ((64, 64), (67, 93), (192, 224))
]


def engine_parity(found_m: Any, depths_m: Any, monkeypatch: pytest.MonkeyPatch, precision: Any = "fp32") -> Parity:
    """The engine's gate, with ONNX Runtime's depth as known."""
    manifest = replace(read_manifest(NANO_ONNX["fp32"]), precision=precision)
    monkeypatch.setattr(module, "OnnxRuntimeSession", lambda *_: Stored(manifest, depths_m))
    source = Artefact(path=NANO_ONNX["fp32"], kind="onnx", sidecar=manifest)
    return measure_engine_parity(Stored(manifest, found_m), source)


@pytest.mark.parametrize("patch", PATCHES)
def test_wrong_patch_is_detected_although_the_mean_is_small(
    patch: Any, depths_m: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean alone would pass, also on top of FP16 rounding."""
    known = depths_m["fp32"]
    relative = np.abs(patched(known, *patch).astype(np.float64) - known) / known
    assert relative.mean() < LIMITS_ENGINE["fp32"].mean
    for right in depths_m.values():
        with pytest.raises(GateError, match="nothing was written") as caught:
            engine_parity(patched(right, *patch), known, monkeypatch)
        assert "worst 8x8 pixels" in caught.value.why


@pytest.mark.parametrize("patch", PATCHES)
def test_running_artefact_is_checked_for_wrong_patches(patch: Any, depths_m: dict[str, Any]) -> None:
    """Against what was stored at export, by `mde verify` and before `mde bench`."""
    manifest = read_manifest(NANO_ONNX["fp16"])
    images = np.concatenate(package_inputs(manifest))
    known = Reference(images, depths_m["fp32"])
    limits = LIMITS_ELSEWHERE["fp16"]
    assert limits.hold(measure_agreement(Stored(manifest, depths_m["fp16"]), known))
    assert not limits.hold(measure_agreement(Stored(manifest, patched(depths_m["fp16"], *patch)), known))


def test_fp16_passes_with_a_margin(depths_m: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = engine_parity(depths_m["fp16"], depths_m["fp32"], monkeypatch)
    assert found.block_relative is not None
    assert found.block_relative < LIMITS_ENGINE["fp16"].block / 2
    stored = read_reference(NANO_ONNX["fp16"])
    assert stored is not None
    manifest = read_manifest(NANO_ONNX["fp16"])
    with OnnxRuntimeSession(NANO_ONNX["fp16"], manifest, CPU) as session:
        assert LIMITS_ELSEWHERE["fp16"].hold(measure_agreement(session, stored))


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`nano` in INT8 for CPUs, calibrated on the package's frames."""
    source = read_manifest(NANO_ONNX["fp32"])
    model = onnx.load(NANO_ONNX["fp32"])
    nodes = quantisable(model)
    ranges = collect(model, calibrated_tensors(model, nodes, "cpu"), package_inputs(source)).ranges("max")
    path = tmp_path_factory.mktemp("int8") / "nano.int8.onnx"
    onnx.save(quantise(model, nodes, ranges, "cpu"), path)
    manifest = replace(source, precision="int8", artefact_sha256=sha256_of(path))
    write_artefact(path, path.read_bytes(), manifest)
    return path


def test_int8_passes_and_its_patches_do_not(int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another runtime's arithmetic: ONNX Runtime's without its INT8 kernels, which rounds in float."""
    manifest = read_manifest(int8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(int8, options, providers=["CPUExecutionProvider"])
    inputs = package_inputs(manifest)
    other = np.concatenate([plain.run(None, {manifest.inputs[0].name: each})[0] for each in inputs])
    with OnnxRuntimeSession(int8, manifest, CPU) as session:
        own = np.concatenate([session.infer({"image": each})["depth"].copy() for each in inputs])
    found = engine_parity(other, own, monkeypatch, "int8")
    assert found.block_relative is not None
    assert 1e-3 < found.block_relative < LIMITS_ENGINE["int8"].block / 1.4
    for patch in PATCHES:
        with pytest.raises(GateError):
            engine_parity(patched(other, *patch.values[0]), own, monkeypatch, "int8")


def test_block_figure_is_the_mean_of_the_worst_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 20x28 pixels have blocks of 8x8 and, at the border, of 4x4."""
    known = np.full((1, 20, 28), 2.0, np.float32)
    found = known.copy()
    found[0, 9, 10] = 3.0  # half too far, one pixel of 64
    found[0, 19, 27] = 2.2  # a tenth too far, one pixel of 16
    parity = module._compare([(found, known)], "", "", "")
    assert parity.block_relative == pytest.approx(0.5 / 64)
    assert parity.max_relative == pytest.approx(0.5)
    assert parity.mean_relative == pytest.approx(0.6 / 560)
    found[0, 0, 0] = np.nan
    assert module._compare([(found, known)], "", "", "").block_relative == np.inf


def test_worst_block_over_several_sizes() -> None:
    one = Parity(runner="", frames=1, max_relative=0.3, mean_relative=0.1, block_relative=0.2, limit="")
    old = replace(one, block_relative=None)
    assert worst_parity([one, replace(one, block_relative=0.25)]).block_relative == 0.25
    assert worst_parity([old, old]).block_relative is None
    assert figures(one) == "mean 1.0e-01, worst 8x8 pixels 2.0e-01, worst pixel 3.0e-01 relative"
    assert figures(old) == "mean 1.0e-01, worst pixel 3.0e-01 relative"
    limits = LIMITS_ENGINE["fp16"]
    assert not limits.hold(replace(one, mean_relative=float("nan"), block_relative=0.0))
    assert not limits.hold(replace(one, mean_relative=0.0, block_relative=float("nan")))
