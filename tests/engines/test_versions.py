"""Differences between versions, checked with the real modules: the builder of TensorRT for RTX runs without a GPU.

`tensorrt_lean` is TensorRT 11's runtime: it has the builder's enumerations, and no builder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mirrordepth_edge.backends.trt.refit import refit
from mirrordepth_edge.config import BuildConfig
from mirrordepth_edge.engines.versions import (
    HARDWARE_LEVELS,
    LIMITS,
    VERBOSITIES,
    Flavour,
    has_timing_cache,
    needs_strong_flag,
    refuse_unsupported,
    require_new_enough,
)
from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.machine.device import nvidia_gpus

# Both our own names and those that Polygraphy's loaders use for the arguments we give them.
BUILDER_API = {
    "Builder": ("create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"),
    "INetworkDefinition": ("num_inputs", "get_input", "get_flag"),
    "ITensor": ("name", "shape"),
    "IBuilderConfig": (
        "set_flag",
        "clear_flag",
        "set_memory_pool_limit",
        "builder_optimization_level",
        "profiling_verbosity",
        "progress_monitor",
        "hardware_compatibility_level",
        "add_optimization_profile",
        "create_timing_cache",
        "set_timing_cache",
        "get_timing_cache",
    ),
    "IOptimizationProfile": ("set_shape",),
    "OnnxParserRefitter": ("refit_from_file", "num_errors", "get_error"),
}
SHARED_API = {
    "IProgressMonitor": ("phase_start", "step_complete", "phase_finish"),
    "Refitter": ("get_missing_weights", "refit_cuda_engine"),
    "ITimingCache": ("serialize", "combine"),
    "MemoryPoolType": ("WORKSPACE",),
    "BuilderFlag": ("TF32", "STRIP_PLAN", "REFIT_IDENTICAL", "VERSION_COMPATIBLE"),
    "ProfilingVerbosity": tuple(VERBOSITIES.values()),
    "HardwareCompatibilityLevel": tuple(HARDWARE_LEVELS.values()),
}


def module(name: str) -> Any:
    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        pytest.skip(f"{name} is not usable here: {error}")


def missing(trt: Any, wanted: dict[str, tuple[str, ...]]) -> list[str]:
    return [f"{cls}.{name}" for cls, names in wanted.items() for name in names if not hasattr(getattr(trt, cls), name)]


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_the_builder_api_exists(name: str) -> None:
    trt = module(name)
    newer = [int(part) for part in trt.__version__.split(".")[:2]] >= [10, 9] or name == "tensorrt_rtx"
    shared = SHARED_API if newer else {**SHARED_API, "HardwareCompatibilityLevel": ("AMPERE_PLUS",)}
    assert not missing(trt, {**BUILDER_API, **shared})


def test_the_builder_api_exists_in_tensorrt_11() -> None:
    trt = module("tensorrt_lean")
    assert int(trt.__version__.split(".")[0]) >= 11
    assert not missing(trt, SHARED_API)
    assert not hasattr(trt.BuilderFlag, "FP16"), "weak typing is gone, so nothing may ask for it"


@pytest.mark.parametrize(
    ("flavour", "version", "needed"),
    [
        ("tensorrt", "10.3.0", True),
        ("tensorrt", "10.16.1.11", True),
        ("tensorrt", "11.0.0", False),
        ("tensorrt", "11.4.1", False),
        ("tensorrt-rtx", "1.4.0.76", False),
        ("tensorrt-rtx", "1.7.1.116", False),
    ],
)
def test_which_versions_need_the_flag_for_strong_typing(flavour: Flavour, version: str, needed: bool) -> None:
    assert needs_strong_flag(flavour, version) is needed


def test_tensorrt_for_rtx_is_strongly_typed_by_default() -> None:
    trt = module("tensorrt_rtx")
    network = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR)).create_network(0)
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


NEWEST = {"tensorrt": "11.4.1", "tensorrt-rtx": "1.7.1"}
EVERYTHING = BuildConfig(
    workspace_gib=1.0,
    optimisation_level=4,
    hardware_compat="same-cc",
    version_compat=True,
    weights="stripped",
    verbosity="none",
)


def test_the_newest_tensorrt_supports_every_option() -> None:
    refuse_unsupported(EVERYTHING, "tensorrt", NEWEST["tensorrt"])
    assert has_timing_cache("tensorrt")


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_defaults_are_never_refused(flavour: Flavour) -> None:
    for version in ("1.4.0", "10.3.0", NEWEST[flavour], ""):
        refuse_unsupported(BuildConfig(workspace_gib=2.0, verbosity="layer-names"), flavour, version)


def test_same_compute_capability_needs_10_9() -> None:
    asked = BuildConfig(hardware_compat="same-cc")
    for version in ("10.3.0", "10.8.0.43"):
        with pytest.raises(OptionError, match="--hardware-compat same-cc") as caught:
            refuse_unsupported(asked, "tensorrt", version)
        assert "10.9" in caught.value.why
    for version in ("10.9.0", "10.13.3.9", "11.0.0", ""):
        refuse_unsupported(asked, "tensorrt", version)
    refuse_unsupported(BuildConfig(hardware_compat="ampere+"), "tensorrt", "10.3.0")


def test_a_jetsons_engine_is_for_its_own_gpu_only() -> None:
    for version in ("10.3.0", "10.16.1", "11.4.1", ""):
        for level in ("ampere+", "same-cc"):
            builder = f"tensorrt {version}".strip()
            with pytest.raises(OptionError, match=f"^{builder} does not support --hardware-compat") as caught:
                refuse_unsupported(BuildConfig(hardware_compat=level), "tensorrt", version, integrated=True)
            assert "JetPack" in caught.value.why
        refuse_unsupported(BuildConfig(), "tensorrt", version, integrated=True)
        refuse_unsupported(BuildConfig(version_compat=True), "tensorrt", version, integrated=True)


def test_tensorrt_before_10_3_is_too_old() -> None:
    for version in ("8.6.2", "9.3.0.post12", "10.2.0"):
        with pytest.raises(MissingError, match="cannot build this engine"):
            require_new_enough(version)
    for version in ("10.3", "10.3.0.30-1+cuda12.5", "10.16.1", "11.0.0", "", "unknown"):
        require_new_enough(version)


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (BuildConfig(hardware_compat="ampere+"), "--hardware-compat"),
        (BuildConfig(version_compat=True), "--version-compat"),
        (BuildConfig(optimisation_level=3), "--optimisation-level"),
        (BuildConfig(weights="stripped"), "--weights stripped"),
    ],
)
def test_options_that_tensorrt_for_rtx_ignores_are_refused(config: BuildConfig, option: str) -> None:
    with pytest.raises(OptionError, match=option) as caught:
        refuse_unsupported(config, "tensorrt-rtx", "")
    assert "https://docs.nvidia.com/" in caught.value.why
    assert option in caught.value.cure


def test_every_limit_has_a_link() -> None:
    assert all(limit.link.startswith(("https://docs.nvidia.com/", "https://github.com/NVIDIA/")) for limit in LIMITS)


@pytest.fixture(scope="module")
def convolution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One convolution of 8x12 pixels."""
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.standard_normal((8, 3, 3, 3)).astype(np.float32), "weights")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 12])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 8, 6, 10])
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weights"], ["output"])], "one", [image], [output], [weights]
    )
    path = tmp_path_factory.mktemp("convolution") / "convolution.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture
def rtx_bytes(convolution: Path) -> Callable[[Callable[[Any, Any], None]], bytes | None]:
    """Build the convolution for RTX 40 with TensorRT for RTX; None if the builder failed."""
    trt = module("tensorrt_rtx")

    def built(change: Callable[[Any, Any], None]) -> bytes | None:
        logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        assert trt.OnnxParser(network, logger).parse_from_file(str(convolution))
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        change(trt, config)
        plan = builder.build_serialized_network(network, config)
        return None if plan is None else bytes(plan)

    return built


def test_tensorrt_for_rtx_still_ignores_the_refused_options(rtx_bytes: Any) -> None:
    """The engine is the same with and without them. If this fails for a version, `LIMITS` should allow them there."""

    def level(number: int) -> Any:
        return lambda trt, config: setattr(config, "builder_optimization_level", number)

    def ampere(trt: Any, config: Any) -> None:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS

    def workspace(trt: Any, config: Any) -> None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 2**30)

    plain = rtx_bytes(lambda trt, config: None)
    assert plain is not None
    assert rtx_bytes(level(0)) == rtx_bytes(level(5)) == rtx_bytes(ampere) == plain
    assert rtx_bytes(workspace) != plain, "what it does not ignore shows in the bytes"


def test_tensorrt_for_rtx_still_fails_with_the_refused_options(rtx_bytes: Any) -> None:
    def flag(name: str) -> Any:
        return lambda trt, config: config.set_flag(getattr(trt.BuilderFlag, name))

    assert rtx_bytes(flag("VERSION_COMPATIBLE")) is None
    if not nvidia_gpus():
        assert rtx_bytes(flag("STRIP_PLAN")) is None


READ_BACK = """
import json, sys
import tensorrt_rtx as trt
from polygraphy.backend.trt import Profile, create_network
from mirrordepth_edge.config import BuildConfig
from mirrordepth_edge.engines.versions import create_config

builder, network = create_network()
network.add_input("image", trt.float32, (1, -1, -1, 3))
shapes = [(1, 8, 16, 3), (1, 16, 24, 3), (1, 32, 40, 3)]
asked = BuildConfig(workspace_gib=1.5, verbosity="layer-names")
loader = create_config(
    trt, asked, "tensorrt-rtx", compute_capabilities=[(8, 6), (12, 0)], profiles=[Profile().add("image", *shapes)]
)
config = loader(builder, network)
print(json.dumps({
    "workspace": config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
    "verbosity": config.profiling_verbosity.name,
    "tf32": config.get_flag(trt.BuilderFlag.TF32),
    "strip": config.get_flag(trt.BuilderFlag.STRIP_PLAN),
    "profiles": config.num_optimization_profiles,
    "gpus": [config.get_compute_capability(i).name for i in range(config.num_compute_capabilities)],
}), file=sys.stderr)
"""


def test_the_builder_config_has_the_options() -> None:
    """Read from the real `IBuilderConfig`, in a process in which Polygraphy uses TensorRT for RTX."""
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT for RTX is not installed")
    environment = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", READ_BACK], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    arguments = json.loads(next(line for line in done.stderr.splitlines() if line.startswith('{"workspace"')))
    assert arguments == {
        "workspace": 3 * 2**29,
        "verbosity": "LAYER_NAMES_ONLY",
        "tf32": True,
        "strip": False,
        "profiles": 1,
        "gpus": ["SM86", "SM120"],
    }


class FakeRefit:
    """The part of TensorRT that refits, recording its calls; names are held to the real modules above."""

    def __init__(self, *, parses: bool = True, missing: tuple[str, ...] = (), refits: bool = True) -> None:
        self.calls: list[Any] = []

        class Logger:
            ERROR = 1

            def __init__(self, severity: int) -> None: ...

        class Refitter:
            def __init__(own, engine: Any, logger: Logger) -> None:  # noqa: N805
                self.calls.append(engine)

            def get_missing_weights(own) -> list[str]:  # noqa: N805
                return list(missing)

            def refit_cuda_engine(own) -> bool:  # noqa: N805
                self.calls.append("refit")
                return refits

        class OnnxParserRefitter:
            num_errors = 1

            def __init__(own, refitter: Refitter, logger: Logger) -> None: ...  # noqa: N805

            def refit_from_file(own, path: str) -> bool:  # noqa: N805
                self.calls.append(path)
                return parses

            def get_error(own, index: int) -> Any:  # noqa: N805
                return SimpleNamespace(desc=lambda: "no initialiser of that name")

        self.Logger, self.Refitter, self.OnnxParserRefitter = Logger, Refitter, OnnxParserRefitter


def test_weights_are_read_before_the_engine_takes_them() -> None:
    trt = FakeRefit()
    refit(trt, "engine", Path("model.onnx"))
    assert trt.calls == ["engine", "model.onnx", "refit"]


@pytest.mark.parametrize(
    ("trt", "why"),
    [
        (FakeRefit(parses=False), "no initialiser of that name"),
        (FakeRefit(missing=("a", "b", "c", "d")), "no weights for a, b, c …"),
        (FakeRefit(refits=False), "returned False"),
    ],
)
def test_weights_that_do_not_fit_are_refused(trt: FakeRefit, why: str) -> None:
    with pytest.raises(InputError, match=r"weights of model\.onnx") as caught:
        refit(trt, "engine", Path("model.onnx"))
    assert why in caught.value.why
    assert "mde build model.onnx" in caught.value.cure
