"""Engines: what is refused before anything slow, what the parser says, and a real build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mirrordepth_edge.backends.base import Arrays, Available
from mirrordepth_edge.backends.onnxruntime import OnnxRuntimeSession
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.deploy import build as build_module
from mirrordepth_edge.deploy.build import BuildPlan, build_engine, plan_build
from mirrordepth_edge.device import Gpu, nvidia_gpus
from mirrordepth_edge.errors import GateError, InputError, MissingError, OptionError
from mirrordepth_edge.files import sha256_of
from mirrordepth_edge.manifest import Manifest, read_manifest, write_artefact
from mirrordepth_edge.runtime import NANO_ONNX


def gpu(capability: str) -> Gpu:
    return Gpu(name="GPU", compute_capability=capability, memory_mib=8192, integrated=False, cuda="12.6")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An x86-64 machine with both builders installed and no GPU."""
    monkeypatch.setattr(build_module, "find_spec", lambda name: object())
    monkeypatch.setattr(build_module, "nvidia_gpus", lambda: ())
    monkeypatch.setattr(build_module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(build_module.tensorrt, "module", lambda: None)
    return monkeypatch


def with_gpu(machine: pytest.MonkeyPatch, capability: str) -> None:
    machine.setattr(build_module, "nvidia_gpus", lambda: (gpu(capability),))


def test_without_a_gpu_every_rtx_target_is_built(machine: pytest.MonkeyPatch) -> None:
    plan = plan_build(None)
    assert (plan.flavour, plan.compute_capabilities) == ("tensorrt-rtx", ("8.6", "8.9", "12.0"))
    assert not plan.runs_here


def test_a_jetson_without_tensorrt_is_told_of_jetpack(machine: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise MissingError("TensorRT is not usable here.", "No module named tensorrt", build_module.tensorrt.INSTALL)

    machine.setattr(build_module.platform, "machine", lambda: "aarch64")
    machine.setattr(build_module, "find_spec", lambda name: None)
    machine.setattr(build_module.tensorrt, "module", absent)
    with_gpu(machine, "8.7")
    with pytest.raises(MissingError, match="not usable") as caught:
        plan_build(None)
    assert "JetPack" in caught.value.cure


def test_chosen_rtx_targets(machine: pytest.MonkeyPatch) -> None:
    assert plan_build("rtx-ada").compute_capabilities == ("8.9",)
    assert plan_build("rtx-ada, rtx-blackwell").compute_capabilities == ("8.9", "12.0")
    with_gpu(machine, "8.9")
    assert plan_build("rtx-ada").runs_here
    assert not plan_build("rtx-ampere").runs_here


def test_with_a_gpu_and_tensorrt_this_machine_is_meant(machine: pytest.MonkeyPatch) -> None:
    with_gpu(machine, "8.7")
    for target in (None, "here", "orin-nano"):
        plan = plan_build(target)
        assert (plan.flavour, plan.compute_capabilities, plan.runs_here) == ("tensorrt", ("8.7",), True)
    with pytest.raises(MissingError, match="no thor"):
        plan_build("thor")


def test_with_an_rtx_card_and_no_tensorrt_its_own_capability_is_built(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(build_module, "find_spec", lambda name: object() if name == "tensorrt_rtx" else None)
    with_gpu(machine, "7.5")
    plan = plan_build(None)
    assert (plan.flavour, plan.compute_capabilities, plan.runs_here) == ("tensorrt-rtx", ("7.5",), True)


@pytest.mark.parametrize("target", ["here", "orin-nano", "agx-orin", "thor"])
def test_a_jetson_engine_is_built_on_the_jetson(target: str, machine: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match="cannot be built here") as caught:
        plan_build(target)
    assert "mde build model.onnx" in caught.value.cure


def test_missing_builder(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(build_module, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="TensorRT for RTX") as caught:
        plan_build("rtx-ada")
    assert "pip install" in caught.value.cure


@pytest.mark.parametrize(
    ("target", "message"),
    [("cpu", "no engine"), ("rtx-ada,orin-nano", "No one engine"), ("gtx-480", "no export recipe")],
)
def test_targets_that_make_no_sense(target: str, message: str, machine: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=message):
        plan_build(target)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_real_engine_is_built(precision: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    source, plan = NANO_ONNX[precision], tmp_path / "nano.plan"
    manifest = build_engine(source, plan, plan_build("rtx-ada"))
    assert read_manifest(plan) == manifest
    assert manifest.kind == "plan"
    assert manifest.precision == precision
    assert manifest.parent_sha256 == sha256_of(source)
    assert manifest.checkpoint_sha256 == read_manifest(source).checkpoint_sha256
    assert manifest.engine is not None
    assert manifest.engine.compute_capabilities == ("8.9",)
    assert plan.read_bytes()[1:4] == b"trt"  # TensorRT's own magic: nothing is glued to the plan


class WrongEngine(OnnxRuntimeSession):
    """An engine as some TensorRT releases build them: fast, and wrong by a twentieth."""

    def infer(self, feeds: Mapping[str, Any]) -> Arrays:
        return {name: array * np.float32(1.05) for name, array in super().infer(feeds).items()}


@pytest.mark.parametrize(("session", "right"), [(OnnxRuntimeSession, True), (WrongEngine, False)])
def test_an_engine_that_can_run_here_is_proven_first(
    session: type[OnnxRuntimeSession], right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is played by ONNX Runtime, since no GPU is needed to hold the gate."""
    source, plan = NANO_ONNX["fp16"], tmp_path / "nano.plan"

    class Played:
        def probe(self) -> Available:
            return Available(version="1", devices=("GPU",))

        def open(self, path: Path, manifest: Manifest, options: SessionOptions) -> OnnxRuntimeSession:
            assert path.read_bytes() == b"plan"
            return session(source, manifest, SessionOptions(device="cpu"))

    def worker(request: dict[str, Any]) -> dict[str, Any]:
        Path(request["plan"]).write_bytes(b"plan")
        return {"seconds": 1.0, "version": "10.3.0"}

    monkeypatch.setattr(build_module, "_run_worker", worker)
    monkeypatch.setattr(build_module, "backend", lambda name: Played())
    order = BuildPlan(flavour="tensorrt", compute_capabilities=("8.7",), runs_here=True)
    if right:
        manifest = build_engine(source, plan, order)
        assert manifest.parity.max_relative == 0.0
        assert "against its ONNX" in manifest.parity.runner
        return
    with pytest.raises(GateError, match="nothing was written"):
        build_engine(source, plan, order)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_needs_an_engines_name(tmp_path: Path) -> None:
    order = BuildPlan(flavour="tensorrt", compute_capabilities=("8.7",), runs_here=False)
    with pytest.raises(OptionError, match="no name for an engine"):
        build_engine(NANO_ONNX["fp16"], tmp_path / "nano.onnx", order)


def write_unsupported(path: Path) -> None:
    """A model with an operator no builder knows, and a manifest that fits it."""
    node = helper.make_node("Conundrum", ["image"], ["depth"], name="decoder/odd_one", domain="example")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 4])
    depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, 4, 4])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("example", 1)]
    model = helper.make_model(helper.make_graph([node], "odd", [image], [depth]), opset_imports=opsets)
    onnx.save(model, path)
    manifest = replace(read_manifest(NANO_ONNX["fp32"]), artefact_sha256=sha256_of(path))
    write_artefact(path, path.read_bytes(), manifest)


def test_a_parser_error_names_the_node(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    source, plan = tmp_path / "odd.onnx", tmp_path / "odd.plan"
    write_unsupported(source)
    with pytest.raises(InputError, match="cannot build") as caught:
        build_engine(source, plan, plan_build("rtx-ada"))
    assert "decoder/odd_one" in caught.value.why
    assert "Conundrum" in caught.value.why
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd.onnx", "odd.onnx.manifest.json"]


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_an_engine_for_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    if not nvidia_gpus():
        pytest.skip("no NVIDIA GPU is visible")
    from mirrordepth_edge.backends.registry import open_session

    plan = tmp_path / "nano.plan"
    build_engine(NANO_ONNX["fp16"], plan, plan_build("here"))
    with open_session(plan)[0] as session:
        assert session.backend == "tensorrt"
