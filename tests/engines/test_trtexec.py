"""The equivalent trtexec command: its flags for each TensorRT version, parsed as a shell does."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from mirrordepth_edge.artefact import NANO_ONNX
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.commands.parameters import parse_range
from mirrordepth_edge.config import BuildConfig
from mirrordepth_edge.engines.trtexec import trtexec_command, trtexec_commands
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.manifest import Manifest, read_manifest

ONNX, PLAN = Path("depth.onnx"), Path("depth.plan")
SIZES = parse_range("160x224,224x288,448x576")
EVERYTHING = BuildConfig(
    workspace_gib=0.5,
    optimisation_level=5,
    verbosity="layer-names",
    dynamic=SIZES,
    hardware_compat="ampere+",
    version_compat=True,
    weights="stripped",
)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_manifest(NANO_ONNX["fp16"])


def opened(manifest: Manifest, name: str = "image", layout: str = "NHWC", *shape: int) -> Manifest:
    """The manifest of a file with dynamic axes."""
    spec = replace(manifest.inputs[0], name=name, layout=layout, shape=shape or (1, -1, -1, 3))
    return replace(manifest, inputs=(spec,), sizes=SIZES)


def flags(manifest: Manifest, version: str, config: BuildConfig | None = None) -> list[str]:
    return shlex.split(trtexec_command(ONNX, PLAN, manifest, version=version, config=config or BuildConfig()))


@pytest.mark.parametrize(
    ("version", "is_flagged"), [("10.3", True), ("10.16.1", True), ("11.0", False), ("11.4.1", False)]
)
def test_tensorrt_10_needs_the_flag_for_strong_typing(version: str, is_flagged: bool, manifest: Manifest) -> None:
    strong = ["--stronglyTyped"] if is_flagged else []
    assert flags(manifest, version) == [
        "trtexec",
        "--onnx=depth.onnx",
        "--saveEngine=depth.plan",
        *strong,
        "--profilingVerbosity=detailed",
        "--skipInference",
    ]


@pytest.mark.parametrize("version", ["10.3", "11.1"])
def test_every_option_has_its_flag(version: str, manifest: Manifest) -> None:
    command = flags(opened(manifest), version, EVERYTHING)
    assert [word for word in command if word != "--stronglyTyped"][3:] == [
        "--memPoolSize=workspace:536870912B",
        "--builderOptimizationLevel=5",
        "--profilingVerbosity=layer_names_only",
        "--hardwareCompatibilityLevel=ampere+",
        "--versionCompatible",
        "--stripWeights",
        "--minShapes=image:1x160x224x3",
        "--optShapes=image:1x224x288x3",
        "--maxShapes=image:1x448x576x3",
        "--skipInference",
    ]


def test_a_layout_of_channels_first_and_a_colon_in_the_name(manifest: Manifest) -> None:
    words = flags(opened(manifest, "image:0", "NCHW", -1, 3, -1, -1), "11.1", replace(EVERYTHING, weights="full"))
    assert "--maxShapes=image:0:1x3x448x576" in words
    assert "--stripWeights" not in words


@pytest.mark.parametrize("version", ["10.3", "11.1"])
def test_there_are_no_precision_flags(version: str, manifest: Manifest) -> None:
    words = flags(opened(manifest), version, EVERYTHING)
    assert not {"--fp16", "--int8", "--bf16", "--fp8", "--best", "--noTF32"} & set(words)


def test_same_compute_capability_needs_10_9(manifest: Manifest) -> None:
    config = BuildConfig(hardware_compat="same-cc")
    assert "--hardwareCompatibilityLevel=sameComputeCapability" in flags(manifest, "10.9", config)
    with pytest.raises(OptionError, match="same-cc"):
        flags(manifest, "10.3", config)


def test_paths_survive_a_shell(manifest: Manifest) -> None:
    odd = Path("my models/it's $HOME;rm.onnx")
    command = trtexec_command(odd, PLAN, manifest, version="11.1", config=BuildConfig())
    assert shlex.split(command)[:2] == ["trtexec", f"--onnx={odd}"]


def test_shapes_of_dynamic_axes(manifest: Manifest) -> None:
    assert "--optShapes=image:1x224x288x3" in flags(opened(manifest), "11.1")
    narrower = flags(opened(manifest), "11.1", BuildConfig(dynamic=parse_range("224x224,224x288,224x288")))
    assert "--minShapes=image:1x224x224x3" in narrower
    with pytest.raises(OptionError, match="needs an ONNX file with dynamic shapes") as caught:
        flags(manifest, "11.1", EVERYTHING)
    assert "omit --dynamic" in caught.value.cure
    with pytest.raises(OptionError, match="cannot set shapes"):
        flags(opened(manifest, "a,b"), "11.1", EVERYTHING)


def test_an_option_that_one_version_does_not_support(capsys: pytest.CaptureFixture[str]) -> None:
    """SAME_COMPUTE_CAPABILITY needs 10.9; the oldest supported version is 10.3."""
    assert run_app(["build", "nano.fp16", "--print-trtexec", "--hardware-compat", "same-cc"]) == 0
    ten, reason, eleven, command = capsys.readouterr().out.splitlines()
    assert (ten, eleven) == ("# TensorRT 10", "# TensorRT 11")
    assert reason.startswith("#")
    assert "10.9" in reason
    assert "--hardwareCompatibilityLevel=sameComputeCapability" in shlex.split(command)


def test_an_option_that_no_version_supports(manifest: Manifest) -> None:
    with pytest.raises(OptionError, match="cannot set shapes"):
        trtexec_commands(ONNX, PLAN, opened(manifest, "ima,ge"), (), EVERYTHING)


@pytest.mark.parametrize(
    ("target", "status"), [("rtx-ada", 2), ("rtx-ada,orin-nano", 2), ("orin-nano", 0), ("here", 0)]
)
def test_trtexec_builds_for_tensorrt_only(target: str, status: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_app(["build", "nano.fp16", "--print-trtexec", "--target", target]) == status
    out, err = capfd.readouterr()
    assert ("trtexec --onnx=" in out) is (status == 0)
    assert ("trtexec cannot build for rtx-ada" in err) is (status == 2)
