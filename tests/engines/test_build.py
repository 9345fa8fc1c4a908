"""Building engines: targets, early errors, parser errors, crashes, and a real build."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mirrordepth_edge.artefact import NANO_ONNX, Artefact
from mirrordepth_edge.backends.base import Arrays, Available
from mirrordepth_edge.backends.onnxruntime import OnnxRuntimeSession
from mirrordepth_edge.backends.trt import vendor
from mirrordepth_edge.backends.trt.plan import _weights_of
from mirrordepth_edge.commands.parameters import parse_range
from mirrordepth_edge.config import BuildConfig, Precision, SessionOptions, SizeRange
from mirrordepth_edge.engines import build as build_module
from mirrordepth_edge.engines import process as build_process
from mirrordepth_edge.engines import timing_cache
from mirrordepth_edge.engines.build import BuildPlan, build_engine, plan_build, problems_of
from mirrordepth_edge.engines.process import run_builder
from mirrordepth_edge.engines.versions import Flavour
from mirrordepth_edge.engines.worker import BuildProgress, Phases, profile_shapes, profiles
from mirrordepth_edge.errors import DeviceError, GateError, InputError, MdeError, MissingError, OptionError
from mirrordepth_edge.export import verify
from mirrordepth_edge.machine import driver as driver_module
from mirrordepth_edge.machine.device import Gpu, nvidia_gpus
from mirrordepth_edge.machine.unavailable import Unavailable
from mirrordepth_edge.manifest import Manifest, read_manifest, write_artefact
from mirrordepth_edge.support.cache import read_checked
from mirrordepth_edge.support.files import sha256_of


def gpu(capability: str) -> Gpu:
    return Gpu(name="GPU", compute_capability=capability, memory_mib=8192, integrated=False, cuda="12.6")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An x86-64 machine with both builders installed and no GPU."""
    monkeypatch.setattr(build_module, "find_spec", lambda name: object())
    monkeypatch.setattr(build_module, "nvidia_gpus", lambda: ())
    monkeypatch.setattr(build_module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(build_module, "import_runtime", lambda flavour: SimpleNamespace(__version__="10.3.0"))
    return monkeypatch


def with_gpu(machine: pytest.MonkeyPatch, capability: str) -> None:
    machine.setattr(build_module, "nvidia_gpus", lambda: (gpu(capability),))


def test_without_a_gpu_every_rtx_target_is_built(machine: pytest.MonkeyPatch) -> None:
    plan = plan_build(None)
    assert (plan.flavour, plan.compute_capabilities) == ("tensorrt-rtx", ("8.6", "8.9", "12.0"))
    assert not plan.runs_here


def test_a_jetson_without_tensorrt_needs_jetpack(machine: pytest.MonkeyPatch) -> None:
    def absent(flavour: str) -> None:
        raise MissingError("TensorRT is not usable here.", "No module named tensorrt", vendor.JETPACK)

    machine.setattr(build_module.platform, "machine", lambda: "aarch64")
    machine.setattr(build_module, "find_spec", lambda name: None)
    machine.setattr(build_module, "import_runtime", absent)
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


def test_the_default_target_is_this_machine(machine: pytest.MonkeyPatch) -> None:
    with_gpu(machine, "8.7")
    for target in (None, "here", "orin-nano"):
        plan = plan_build(target)
        assert (plan.flavour, plan.compute_capabilities, plan.runs_here) == ("tensorrt", ("8.7",), True)
    with pytest.raises(MissingError, match="not a thor"):
        plan_build("thor")


def test_an_rtx_gpu_without_tensorrt_uses_tensorrt_for_rtx(machine: pytest.MonkeyPatch) -> None:
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
    [("cpu", "needs no engine"), ("rtx-ada,orin-nano", "No single engine"), ("gtx-480", "no export recipe")],
)
def test_invalid_targets(target: str, message: str, machine: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=message):
        plan_build(target)


SIZES = parse_range("32x64,64x96,128x192")


def write_tiny(path: Path, precision: Precision = "fp32", sizes: SizeRange | None = None) -> Path:
    """A network of one convolution over an RGB image, with its manifest.

    In INT8 the convolution's input and weights go through a pair of quantisers, symmetric.
    """
    rng = np.random.default_rng(0)
    height, width = ("height", "width") if sizes else (32, 64)
    float_kind = TensorProto.FLOAT if precision == "fp32" else TensorProto.FLOAT16
    numbers = {
        "weights": rng.standard_normal((8, 3, 3, 3)),
        "mix": rng.standard_normal((1, 8, 1, 1)),
    }
    kept = [numpy_helper.from_array(array.astype(np.float16), name) for name, array in numbers.items()]
    if precision == "fp32":
        kept = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in numbers.items()]
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=float_kind),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
    ]
    wide, kernel = "planes", "weights"
    if precision == "int8":
        kept += [
            numpy_helper.from_array(np.array(0.5, np.float16), "scale"),
            numpy_helper.from_array(np.array(0, np.int8), "zero"),
        ]
        for name in (wide, kernel):
            nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_d"]))
        wide, kernel = f"{wide}_d", f"{kernel}_d"
    nodes += [
        helper.make_node("Conv", [wide, kernel], ["edges"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["edges"], ["bright"]),
        helper.make_node("Conv", ["bright", "mix"], ["mixed"]),
        helper.make_node("Cast", ["mixed"], ["mixed32"], to=TensorProto.FLOAT),
        helper.make_node("Squeeze", ["mixed32", "axis"], ["depth"]),
    ]
    kept.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, height, width, 3])
    depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, height, width])
    graph = helper.make_graph(nodes, "tiny", [image], [depth], kept)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    source = read_manifest(NANO_ONNX["fp32"])
    shape = (1, -1, -1, 3) if sizes else (1, 32, 64, 3)
    manifest = replace(
        source,
        artefact_sha256=sha256_of(path),
        precision=precision,
        inputs=(replace(source.inputs[0], name="image", shape=shape),),
        outputs=(replace(source.outputs[0], name="depth", shape=shape[:3]),),
        sizes=sizes,
    )
    write_artefact(path, path.read_bytes(), manifest)
    return path


@pytest.fixture
def ada() -> BuildPlan:
    """A plan for RTX 40, which TensorRT for RTX builds on any machine."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    return plan_build("rtx-ada")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_real_engine_is_built(precision: Precision, ada: BuildPlan, tmp_path: Path) -> None:
    import tensorrt_rtx

    source, plan = write_tiny(tmp_path / "tiny.onnx", precision), tmp_path / "tiny.plan"
    config, seen = BuildConfig(workspace_gib=1.0), []
    manifest = build_engine(Artefact.open(source), plan, ada, config, seen.append)
    assert read_manifest(plan) == manifest
    assert manifest.kind == "plan"
    assert manifest.precision == precision
    assert manifest.parent_sha256 == sha256_of(source)
    assert manifest.checkpoint_sha256 == read_manifest(source).checkpoint_sha256
    assert plan.read_bytes()[1:4] == b"trt"  # TensorRT's own magic: nothing is glued to the plan

    engine = manifest.engine
    assert engine is not None
    assert (engine.flavour, engine.version) == ("tensorrt-rtx", tensorrt_rtx.__version__)
    assert engine.version.startswith(ada.version[:3])
    assert engine.compute_capabilities == ("8.9",)
    assert engine.options == config
    assert engine.system == f"{sys.platform}-{os.uname().machine}"
    assert engine.timing is not None
    assert engine.build_seconds == pytest.approx(sum(engine.timing.values()), abs=2e-3)
    assert engine.peak_memory_mb is not None
    assert 50 < engine.peak_memory_mb < 2000  # the builder's libraries alone have more than the one
    if not nvidia_gpus():
        assert (engine.gpu, engine.driver) == (None, None)

    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1


def test_an_engine_of_several_sizes(ada: BuildPlan, tmp_path: Path) -> None:
    source, plan = write_tiny(tmp_path / "open.onnx", "fp16", sizes=SIZES), tmp_path / "open.plan"
    whole = build_engine(Artefact.open(source), plan, ada)
    assert whole.engine is not None
    assert (whole.sizes, whole.engine.options) == (SIZES, BuildConfig(dynamic=SIZES))
    narrower = parse_range("32x64,96x96,96x96")
    manifest = build_engine(Artefact.open(source), plan, ada, BuildConfig(dynamic=narrower))
    assert read_manifest(plan) == manifest
    assert manifest.inputs == read_manifest(source).inputs
    assert (manifest.sizes, manifest.model.size_hw, manifest.preprocess.size_hw) == (narrower, (96, 96), (96, 96))


def test_a_file_with_a_fixed_size_has_no_dynamic_sizes(ada: BuildPlan, tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "tiny.onnx")
    with pytest.raises(OptionError, match="needs an ONNX file with dynamic shapes") as caught:
        build_engine(Artefact.open(source), tmp_path / "tiny.plan", ada, BuildConfig(dynamic=SIZES))
    assert f"mde export --dynamic {SIZES}" in caught.value.cure
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.onnx", "tiny.onnx.manifest.json"}


def test_sizes_the_model_does_not_support(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "open.onnx", sizes=SIZES)
    order = BuildPlan(flavour="tensorrt", compute_capabilities=("8.7",), runs_here=False)
    with pytest.raises(OptionError, match="cannot run at 32x70") as caught:
        build_engine(
            Artefact.open(source), tmp_path / "x.plan", order, BuildConfig(dynamic=parse_range("32x70,64x96,64x96"))
        )
    assert "32x64" in caught.value.cure
    for beyond in ("32x32,64x96,64x96", "32x64,64x96,160x192", "1x32x64,1x64x96,2x64x96"):
        with pytest.raises(OptionError, match="exceeds the range of the ONNX file") as caught:
            build_engine(Artefact.open(source), tmp_path / "x.plan", order, BuildConfig(dynamic=parse_range(beyond)))
        assert str(SIZES) in caught.value.cure


def test_profiles_follow_the_layout() -> None:
    assert profile_shapes((1, -1, -1, 3), "NHWC", SIZES) == ((1, 32, 64, 3), (1, 64, 96, 3), (1, 128, 192, 3))
    more = parse_range("1x32x96,2x64x96,4x128x96")
    assert profile_shapes((-1, 3, -1, 96), "NCHW", more) == ((1, 3, 32, 96), (2, 3, 64, 96), (4, 3, 128, 96))
    for shape, layout in (((1, 32, 64, -1), "NHWC"), ((1, -1, -1), "NHWC"), ((1, -1, -1, 3), None)):
        with pytest.raises(OptionError, match="does not support dynamic sizes"):
            profile_shapes(shape, layout, SIZES)


def test_profiles_of_a_real_network(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    config, layouts = BuildConfig(dynamic=SIZES), {"image": "NHWC"}
    for open_sizes in (True, False):
        logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        assert parser.parse_from_file(str(write_tiny(tmp_path / "tiny.onnx", sizes=SIZES if open_sizes else None)))
        if open_sizes:
            assert profiles(network, config, layouts) == {"image": profile_shapes((1, -1, -1, 3), "NHWC", SIZES)}
        else:
            assert profiles(network, BuildConfig(), layouts) == {}


def test_too_small_a_workspace_is_out_of_memory(ada: BuildPlan, tmp_path: Path) -> None:
    """With TensorRT's real message for a limit of 1 KiB."""
    source = write_tiny(tmp_path / "tiny.onnx")
    with pytest.raises(DeviceError, match="Out of memory") as caught:
        build_engine(Artefact.open(source), tmp_path / "tiny.plan", ada, BuildConfig(workspace_gib=2**-20))
    assert "workspace limit" in caught.value.why
    assert "--workspace other than" in caught.value.cure
    assert not (tmp_path / "tiny.plan").exists()


def request_of(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    request = {
        "onnx": str(tmp_path / "tiny.onnx"),
        "plan": str(tmp_path / "tiny.plan"),
        "flavour": "tensorrt",
        "compute_capabilities": ["8.9"],
        "config": {},
        "layouts": {"image": "NHWC"},
        "timing_cache": None,
    }
    return {**request, **changes}


def dies(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(build_process, "COMMAND", (sys.executable, "-c", f"import os, sys\n{code}"))


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("os.kill(os.getpid(), 9)", DeviceError, ("SIGKILL", "swapon", "--optimisation-level 1", "--workspace 1")),
        ("""print('{"failed": "MemoryError: std::bad_alloc"}')""", DeviceError, ("std::bad_alloc", "--size")),
        ("sys.exit('MemoryError')", DeviceError, ("MemoryError", "swapon")),
        ("sys.exit('[E] Error Code 2: OutOfMemory (Requested size was 9 bytes.)')", DeviceError, ("Requested size",)),
        ("os.kill(os.getpid(), 11)", InputError, ("SIGSEGV", "mde inspect")),
        ("sys.exit('ImportError: no libnvinfer')", InputError, ("no libnvinfer",)),
        ("sys.exit(7)", InputError, ("status 7",)),
        ("""sys.stderr.write('[E] node 3\\n'); print('{"failed": "no"}')""", InputError, ("no\n[E] node 3",)),
    ],
)
def test_the_error_explains_how_the_builder_ended(
    code: str, kind: type[MdeError], words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With real processes."""
    dies(monkeypatch, code)
    with pytest.raises(kind) as caught:
        run_builder(request_of(tmp_path), BuildConfig())
    for word in words:
        assert word in str(caught.value).replace("\n        ", "\n")
    assert ("Out of memory" in caught.value.what) is (kind is DeviceError)


def test_the_advice_considers_the_options_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dies(monkeypatch, "os.kill(os.getpid(), 9)")
    with pytest.raises(DeviceError) as caught:
        run_builder(request_of(tmp_path, flavour="tensorrt-rtx"), BuildConfig(workspace_gib=2))
    assert "a --workspace other than 2" in caught.value.cure
    assert "--optimisation-level" not in caught.value.cure, "it has none"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_the_builder(ada: BuildPlan, tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny.onnx")
    with pytest.raises(InputError, match="Cannot write /dev/full") as caught:
        run_builder(request_of(tmp_path, plan="/dev/full", flavour=ada.flavour), BuildConfig())
    assert caught.value.why == os.strerror(errno.ENOSPC)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A builder that writes b"plan" at once. Returns its requests."""
    requests: list[dict[str, Any]] = []

    def worker(request: dict[str, Any], config: BuildConfig, on_progress: Any = None) -> dict[str, Any]:
        requests.append(request)
        Path(request["plan"]).write_bytes(b"plan")
        if request["timing_cache"]:
            cache = Path(request["timing_cache"])
            cache.write_bytes((cache.read_bytes() if cache.exists() else b"") + b"timed ")
        return {"version": "10.3.0", "timing": {"parse": 0.25, "build": 1.0}, "peak_memory_mb": None}

    monkeypatch.setattr(build_module, "run_builder", worker)
    return requests


def test_a_full_disk_under_the_plan(
    played: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference, for which there is space, is not left behind."""
    order = BuildPlan(flavour="tensorrt", compute_capabilities=("8.7",), runs_here=False)
    really = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.parent == tmp_path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="Cannot write") as caught:
        build_engine(Artefact.open(NANO_ONNX["fp16"]), tmp_path / "nano.plan", order)
    assert "No space left" in caught.value.why
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_the_builder_and_leaves_nothing(
    ada: BuildPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised at the builder's first event, as by a signal at that moment."""
    aside = tmp_path / "aside"
    aside.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(aside))
    started: list[subprocess.Popen[str]] = []
    really = subprocess.Popen

    def remember(*arguments: Any, **options: Any) -> Any:
        started.append(really(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", remember)

    def interrupt(progress: BuildProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(Artefact.open(NANO_ONNX["fp32"]), tmp_path / "nano.plan", ada, on_progress=interrupt)
    assert [worker.returncode for worker in started] == [-signal.SIGKILL]
    assert [path.name for path in tmp_path.iterdir()] == ["aside"]
    assert list(aside.iterdir()) == []


ORIN = BuildPlan(flavour="tensorrt", compute_capabilities=("8.7",), runs_here=True, version="10.3.0")


@pytest.fixture
def orin(machine: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An Orin whose engines are not run. Returns its cache folder."""
    with_gpu(machine, "8.7")
    machine.setattr(build_module, "_verify", lambda built, manifest, *_: manifest.parity)
    machine.setattr(build_module, "backend", lambda name: SimpleNamespace(probe=lambda: None))
    machine.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    return tmp_path / "cache"


def test_timings_are_kept_from_build_to_build(played: list[dict[str, Any]], orin: Path, tmp_path: Path) -> None:
    for _ in range(2):
        build_engine(Artefact.open(NANO_ONNX["fp16"]), tmp_path / "nano.plan", ORIN)
    (stored,) = orin.rglob("*.cache")
    assert read_checked(stored) == b"timed timed "
    build_engine(Artefact.open(NANO_ONNX["fp16"]), tmp_path / "nano.plan", ORIN, BuildConfig(timing_cache=False))
    build_engine(Artefact.open(NANO_ONNX["fp16"]), tmp_path / "nano.plan", replace(ORIN, flavour="tensorrt-rtx"))
    assert [request["timing_cache"] is None for request in played] == [False, False, True, True]
    assert read_checked(stored) == b"timed timed "


def test_each_runtime_driver_and_gpu_has_its_own_timings() -> None:
    own = gpu("8.7")
    paths = {
        timing_cache.timing_cache_path(*key)
        for key in (
            (own, "tensorrt", "10.3.0", "CUDA 12.6"),
            (own, "tensorrt", "10.16.1", "CUDA 12.6"),
            (own, "tensorrt", "10.3.0", "540.4.0, CUDA 12.6"),
            (gpu("11.0"), "tensorrt", "10.3.0", "CUDA 12.6"),
            (replace(own, name="Orin (nvgpu)/8GB"), "tensorrt", "10.3.0", "CUDA 12.6"),
        )
    }
    assert len(paths) == 5
    assert len({path.parent for path in paths}) == 1, "no name may lead into another folder"


def test_timings_that_cannot_be_stored_are_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    (tmp_path / "copy").write_bytes(b"timed")
    assert not timing_cache.save(tmp_path / "copy", tmp_path / "taken" / "x.cache")
    assert not timing_cache.save(tmp_path / "absent", tmp_path / "x.cache")
    assert timing_cache.save(tmp_path / "copy", tmp_path / "x.cache")
    timing_cache.load(tmp_path / "absent", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_manifest_records_where_an_engine_was_built(
    played: list[dict[str, Any]], orin: Path, tmp_path: Path, machine: pytest.MonkeyPatch
) -> None:
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n")
    machine.setattr(driver_module, "VERSION_FILE", version)
    engine = build_engine(Artefact.open(NANO_ONNX["fp16"]), tmp_path / "nano.plan", ORIN).engine
    assert engine is not None
    assert (engine.gpu, engine.driver) == ("GPU", "540.4.0, CUDA 12.6")
    assert (engine.build_seconds, engine.peak_memory_mb) == (1.25, None)
    machine.setattr(driver_module, "VERSION_FILE", tmp_path / "absent")
    engine = build_engine(Artefact.open(NANO_ONNX["fp16"]), tmp_path / "nano.plan", ORIN).engine
    assert engine is not None
    assert engine.driver == "CUDA 12.6"


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_no_engine_is_built_for_this_gpu_if_it_cannot_run(
    flavour: Flavour,
    played: list[dict[str, Any]],
    orin: Path,
    tmp_path: Path,
    machine: pytest.MonkeyPatch,
) -> None:
    """Without cuda-python it could not be verified."""
    lacks = Unavailable(
        reason="Engines need cuda-python, which is not installed.", cure="pip install 'cuda-python==12.6.*'"
    )
    asked: list[str] = []

    def runtime(name: str) -> Any:
        asked.append(name)
        return SimpleNamespace(probe=lambda: lacks)

    machine.setattr(build_module, "backend", runtime)
    order = replace(ORIN, flavour=flavour)
    with pytest.raises(MissingError, match=f"^{flavour} could not run the engine") as caught:
        build_engine(Artefact.open(NANO_ONNX["fp16"]), tmp_path / "nano.plan", order)
    assert "Engines need cuda-python, which is not installed." in caught.value.why
    assert caught.value.cure == lacks.cure
    assert (played, asked) == ([], [flavour])
    build_engine(Artefact.open(NANO_ONNX["fp16"]), tmp_path / "nano.plan", replace(order, runs_here=False))
    assert len(played) == 1, "for another GPU nothing need run here"


def test_a_stripped_engine_is_verified_with_the_weights_of_its_onnx(
    played: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime finds the ONNX file beside the temporary plan."""
    source = NANO_ONNX["fp16"]

    class Played:
        def probe(self) -> Available:
            return Available(version="1", devices=("GPU",))

        def open(self, path: Path, manifest: Manifest, options: SessionOptions) -> OnnxRuntimeSession:
            weights = _weights_of(path, manifest)
            assert weights.parent == path.parent
            return OnnxRuntimeSession(weights, manifest, SessionOptions(device="cpu"))

    monkeypatch.setattr(build_module, "backend", lambda name: Played())
    monkeypatch.setattr(verify, "REPEATS", 1)
    for link in (True, False):
        if not link:
            monkeypatch.setattr(Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError("not allowed")))
        manifest = build_engine(Artefact.open(source), tmp_path / "nano.plan", ORIN, BuildConfig(weights="stripped"))
        assert manifest.parity.runner.endswith("against its FP16 ONNX")
        assert manifest.parity.block_relative == 0
    assert sha256_of(source) == read_manifest(source).artefact_sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["nano.plan", "nano.plan.manifest.json", "nano.plan.reference.npz"]
    )


def test_hardware_compatibility_is_not_for_a_jetson(
    played: list[dict[str, Any]], orin: Path, tmp_path: Path, machine: pytest.MonkeyPatch
) -> None:
    machine.setattr(build_module, "nvidia_gpus", lambda: (replace(gpu("8.7"), integrated=True),))
    config = BuildConfig(hardware_compat="ampere+")
    with pytest.raises(OptionError, match="does not support --hardware-compat") as caught:
        build_engine(Artefact.open(NANO_ONNX["fp16"]), tmp_path / "nano.plan", ORIN, config)
    assert "JetPack" in caught.value.why
    assert not played
    machine.setattr(build_module, "nvidia_gpus", lambda: (gpu("8.9"),))
    build_engine(Artefact.open(NANO_ONNX["fp16"]), tmp_path / "nano.plan", ORIN, config)
    assert played[0]["config"]["hardware_compat"] == "ampere+"


def test_too_old_a_tensorrt_is_refused(machine: pytest.MonkeyPatch) -> None:
    with_gpu(machine, "8.7")
    machine.setattr(build_module, "import_runtime", lambda flavour: SimpleNamespace(__version__="8.6.2"))
    for target in ("here", "orin-nano"):
        with pytest.raises(MissingError, match=r"TensorRT 8\.6\.2 cannot build") as caught:
            plan_build(target)
        assert "10.3" in caught.value.why
        assert "JetPack 6.1" in caught.value.cure


def test_an_unsupported_option_is_refused_before_the_build(played: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="same-cc"):
        build_engine(
            Artefact.open(NANO_ONNX["fp16"]), tmp_path / "x.plan", ORIN, BuildConfig(hardware_compat="same-cc")
        )
    assert not played


def test_known_problems_of_an_engine() -> None:
    problems = problems_of(ORIN, "fp16")
    assert "tensorrt-10.3-attention" in [problem.id for problem in problems]
    assert all(problem.links for problem in problems)
    twice = problems_of(replace(ORIN, compute_capabilities=("8.7", "8.7")), "fp16")
    assert twice == problems, "each problem is listed once"
    newer = problems_of(replace(ORIN, version="10.5.0"), "fp16")
    assert "tensorrt-10.3-attention" not in [problem.id for problem in newer]


def test_the_plan_has_the_builders_version(machine: pytest.MonkeyPatch) -> None:
    with_gpu(machine, "8.7")
    assert plan_build("here").version == "10.3.0"
    machine.setattr(build_module, "installed_versions", lambda names: {"tensorrt-rtx": "1.7.1.116"})
    assert plan_build("rtx-ada").version == "1.7.1.116"
    machine.setattr(build_module, "installed_versions", lambda names: {})
    assert plan_build("rtx-ada").version == ""


def test_nested_phases_are_fractions_of_a_step() -> None:
    phases = Phases()
    assert phases.start("building", None, 4).fraction == 0
    assert phases.step("building", 0).fraction == 1 / 4
    assert phases.start("timing", "building", 10).fraction == 1 / 4
    assert phases.step("timing", 4) == BuildProgress(phase="timing", fraction=1 / 4 + 5 / 10 / 4)
    phases.start("kernel", "timing", 2)
    assert phases.step("kernel", 0).fraction == pytest.approx((1 + (5 + 1 / 2) / 10) / 4)
    phases.finish("kernel")
    assert phases.finish("timing") == BuildProgress(phase="building", fraction=pytest.approx((1 + 0.55) / 4))
    assert phases.finish("building").fraction == 1


def test_a_phase_may_end_early_and_a_step_may_be_unknown() -> None:
    phases = Phases()
    phases.start("building", None, 2)
    phases.start("timing", "building", 100)
    phases.finish("timing")
    assert phases.step("timing", 50) == BuildProgress(phase="building", fraction=0)
    assert phases.step("building", 7).fraction == 1
    assert phases.finish("never begun").fraction == 1
    assert phases.start("empty", None, 0).phase == "empty"


def test_progress_never_falls_with_several_threads() -> None:
    phases, seen = Phases(), []
    phases.start("building", None, 8)

    def work(number: int) -> None:
        name = f"thread {number}"
        phases.start(name, "building", 50)
        seen.extend(phases.step(name, step).fraction for step in range(50))
        phases.finish(name)

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 200
    assert max(seen) == 1 / 8
    assert phases.step("building", 0).fraction == 1 / 8


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system tells no peak")
def test_the_peak_is_the_workers_own() -> None:
    """Freed memory counts, 200 MB; memory of the parent process, 400 MB, does not."""
    child = (
        "from mirrordepth_edge.engines.worker import peak_memory_mb\n"
        "held = b'1' * 200_000_000\ndel held\nprint(peak_memory_mb())"
    )
    parent = (
        "import subprocess, sys\nheld = b'1' * 400_000_000\n"
        f"sys.exit(subprocess.run([sys.executable, '-c', {child!r}]).returncode)"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, timeout=600, check=True)
    assert 200 < float(done.stdout) < 400


class WrongEngine(OnnxRuntimeSession):
    """An engine with a relative error of 5 %, as some TensorRT releases build them."""

    def infer(self, feeds: Mapping[str, Any]) -> Arrays:
        return {name: array * np.float32(1.05) for name, array in super().infer(feeds).items()}


class WrongPatch(OnnxRuntimeSession):
    """An engine whose depth is three times too large on 12x10 pixels, as with an error at tile borders."""

    def infer(self, feeds: Mapping[str, Any]) -> Arrays:
        outputs = {name: array.copy() for name, array in super().infer(feeds).items()}
        outputs["depth"][0, 100:112, 60:70] *= 3
        return outputs


@pytest.mark.parametrize(("session", "right"), [(OnnxRuntimeSession, True), (WrongEngine, False), (WrongPatch, False)])
def test_an_engine_for_this_gpu_is_verified_before_it_is_written(
    session: type[OnnxRuntimeSession],
    right: bool,
    played: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ONNX Runtime stands in for the engine, so that no GPU is needed."""
    source, plan = NANO_ONNX["fp16"], tmp_path / "nano.plan"

    class Played:
        def probe(self) -> Available:
            return Available(version="1", devices=("GPU",))

        def open(self, path: Path, manifest: Manifest, options: SessionOptions) -> OnnxRuntimeSession:
            assert path.read_bytes() == b"plan"
            return session(source, manifest, SessionOptions(device="cpu"))

    monkeypatch.setattr(build_module, "backend", lambda name: Played())
    monkeypatch.setattr(verify, "REPEATS", 1)
    order = BuildPlan(flavour="tensorrt", compute_capabilities=("8.7",), runs_here=True)
    if right:
        manifest = build_engine(Artefact.open(source), plan, order)
        assert manifest.parity.max_relative == 0.0
        assert "against its FP16 ONNX" in manifest.parity.runner
        assert manifest.parity.limit == "mean <= 0.004, worst 8x8 pixels <= 0.03 relative"
        assert read_manifest(plan).parity == manifest.parity
        return
    with pytest.raises(GateError, match="nothing was written"):
        build_engine(Artefact.open(source), plan, order)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_needs_the_suffix_of_an_engine(tmp_path: Path) -> None:
    order = BuildPlan(flavour="tensorrt", compute_capabilities=("8.7",), runs_here=False)
    with pytest.raises(OptionError, match="wrong suffix for an engine"):
        build_engine(Artefact.open(NANO_ONNX["fp16"]), tmp_path / "nano.onnx", order)


def write_unsupported(path: Path) -> None:
    """A model with an unknown operator, with its manifest."""
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
        build_engine(Artefact.open(source), plan, plan_build("rtx-ada"))
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
    build_engine(Artefact.open(NANO_ONNX["fp16"]), plan, plan_build("here"))
    with open_session(plan)[0] as session:
        assert session.backend == "tensorrt"
