"""Plans are held to their manifest and to the machine before a runtime sees their bytes."""

from __future__ import annotations

import json
import platform
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mirrordepth_edge.artefact import NANO_ONNX, SHIPPED, Artefact
from mirrordepth_edge.backends.registry import open_session
from mirrordepth_edge.backends.trt import compatibility, cuda, tensorrt
from mirrordepth_edge.backends.trt import session as engine
from mirrordepth_edge.backends.trt.compatibility import open_plan, runs_in, runs_on
from mirrordepth_edge.backends.trt.plan import trt_logger
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.commands import build as build_command
from mirrordepth_edge.config import BuildConfig, SessionOptions
from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.machine import device
from mirrordepth_edge.machine.device import Gpu, nvidia_gpus
from mirrordepth_edge.machine.driver import DriverVersion
from mirrordepth_edge.manifest import EngineInfo, Manifest, manifest_path, write_artefact
from mirrordepth_edge.support.files import sha256_of

from .fake_engine import CONTENT, MANIFEST, FakeCuda, Script, depth_of, fake_module, frame, gpu

ORIN = EngineInfo(
    flavour="tensorrt",
    version="10.3.0",
    compute_capabilities=("8.7",),
    build_seconds=1.0,
    system="linux-aarch64",
    gpu="Orin",
    driver="540.4.0, CUDA 12.6",
    options=BuildConfig(),
)
RTX = EngineInfo(
    flavour="tensorrt-rtx", version="1.7.1.116", compute_capabilities=("8.6", "8.9"), build_seconds=1.0, options=None
)


def check_compatibility(
    path: Path, *, trust: bool = False, wanted: str | None = None
) -> tuple[Manifest, tuple[str, ...]]:
    return compatibility.check_compatibility(open_plan(path, trust=trust), wanted=wanted)


def rebuild(plan: Path) -> str:
    """What is typed to build it here, from any folder."""
    return f"mde build {plan.with_suffix('.onnx')} -o {plan} --target here"


def untouchable(version: str) -> Any:
    """A runtime's module of which nothing but the version may be used."""
    return SimpleNamespace(__version__=version)


@dataclass
class Board:
    """The machine that the tests believe to run on: by default the one that `ORIN` was built on."""

    gpus: tuple[Gpu, ...] = (gpu("Orin"),)
    installed: dict[str, Any] = field(default_factory=lambda: {"tensorrt": untouchable("10.3.0")})
    system: tuple[str, str] = ("Linux", "aarch64")
    driver: str = "540.4.0"


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    board = Board()

    def import_runtime(flavour: str) -> Any:
        if flavour not in board.installed:
            raise MissingError(f"{flavour} is not usable here.", "not installed", f"pip install {flavour}")
        return board.installed[flavour]

    monkeypatch.setattr(compatibility, "nvidia_gpus", lambda: board.gpus)
    monkeypatch.setattr(compatibility, "driver_version", lambda gpu: DriverVersion(kernel=board.driver, cuda=gpu.cuda))
    monkeypatch.setattr(
        compatibility, "find_spec", lambda package: package if package.replace("_", "-") in board.installed else None
    )
    monkeypatch.setattr(compatibility, "import_runtime", import_runtime)
    monkeypatch.setattr(platform, "system", lambda: board.system[0])
    monkeypatch.setattr(platform, "machine", lambda: board.system[1])
    return board


def write_plan(folder: Path, engine: EngineInfo = ORIN, content: bytes = CONTENT) -> Path:
    """A plan with its manifest."""
    plan = folder / "tiny.plan"
    plan.write_bytes(content)
    write_artefact(plan, content, replace(MANIFEST, artefact_sha256=sha256_of(plan), engine=engine))
    return plan


def write_onnx_manifest(folder: Path) -> Manifest:
    manifest = replace(MANIFEST, kind="onnx", artefact_sha256="e" * 64, engine=None)
    (folder / "tiny.onnx.manifest.json").write_text(json.dumps(asdict(manifest)), encoding="utf-8")
    return manifest


def test_a_plan_of_this_machine(board: Board, tmp_path: Path) -> None:
    manifest, notes = check_compatibility(write_plan(tmp_path))
    assert manifest.engine == ORIN
    assert notes == ()


MISMATCHES: list[tuple[Callable[[Board], object], list[str]]] = [
    (lambda board: board.installed.update(tensorrt=untouchable("10.13.3")), ["tensorrt 10.3.0", "tensorrt 10.13.3"]),
    (lambda board: setattr(board, "system", ("Linux", "x86_64")), ["linux-aarch64", "linux-x86_64"]),
    (lambda board: setattr(board, "gpus", (gpu("Ada", "8.9"),)), ["compute capability 8.7", "GPU 0 is Ada (8.9)"]),
    (
        lambda board: board.installed.update({"tensorrt-rtx": board.installed.pop("tensorrt")}),
        ["built by tensorrt 10.3.0", "only tensorrt-rtx is installed"],
    ),
]


@pytest.mark.parametrize(("change", "sides"), MISMATCHES, ids=["version", "system", "gpu", "flavour"])
def test_a_mismatch_names_both_sides_and_the_rebuild(
    change: Callable[[Board], object], sides: list[str], board: Board, tmp_path: Path
) -> None:
    """Through the registry: the runtime's module is one that breaks where it is touched."""
    plan = write_plan(tmp_path)
    change(board)
    with pytest.raises(InputError, match="was not built for") as caught:
        open_session(plan)
    assert all(side in caught.value.why for side in sides)
    assert rebuild(plan) in caught.value.cure
    with pytest.raises(InputError, match="was not built for"):
        open_session(plan, SessionOptions(trust=True))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_plan_of_a_shipped_model_is_built_again_from_it(
    name: str, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed, typed: no ONNX file lies beside the plan, whatever its name."""
    plan = tmp_path / "a plan" / "front.plan"
    plan.parent.mkdir()
    plan.write_bytes(CONTENT)
    parent = sha256_of(SHIPPED[name])
    manifest = replace(MANIFEST, artefact_sha256=sha256_of(plan), parent_sha256=parent, engine=ORIN)
    write_artefact(plan, CONTENT, manifest)
    cures = []
    for change in (("8.9", "10.3.0"), ("8.7", "10.13.3")):
        board.gpus, board.installed = (gpu("Any", change[0]),), {"tensorrt": untouchable(change[1])}
        with pytest.raises(InputError, match="was not built for") as caught:
            open_session(plan)
        cures.append(caught.value.cure)
    manifest_path(plan).unlink()
    named = plan.rename(plan.with_name(f"{name}.plan"))
    with pytest.raises(InputError, match="has no manifest") as caught:
        open_session(named)
    cures.append(caught.value.cure)
    typed: list[Any] = []
    monkeypatch.setattr(build_command, "build_and_report", lambda *arguments: typed.append(arguments[:3]))
    for cure in cures:
        command = re.search("mde (build .* --target here)", cure)
        assert command is not None
        assert run_app(shlex.split(command[1])) == 0
    assert typed == [*[(SHIPPED[name], plan, "here")] * 2, (SHIPPED[name], named, "here")]


def test_all_mismatches_are_reported_at_once(board: Board, tmp_path: Path) -> None:
    board.system, board.gpus = ("Linux", "x86_64"), (gpu("Ada", "8.9"), gpu("Orin"))
    board.installed["tensorrt"] = untouchable("11.1.0")
    plan = write_plan(tmp_path)
    with pytest.raises(InputError) as caught:
        check_compatibility(plan)
    for side in ("10.3.0", "11.1.0", "linux-aarch64", "linux-x86_64", "8.7", "8.9"):
        assert side in caught.value.why
    assert rebuild(plan) in caught.value.cure  # the other GPU alone would not do


def test_another_gpu_of_this_machine_would_do(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board.gpus = (gpu("Ada", "8.9"), gpu("Orin"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with pytest.raises(InputError, match="not built for this GPU") as caught:
        check_compatibility(write_plan(tmp_path))
    assert caught.value.cure.endswith("CUDA_VISIBLE_DEVICES=5")


def test_no_runtime_at_all(board: Board, tmp_path: Path) -> None:
    board.installed.clear()
    with pytest.raises(MissingError, match="tensorrt is not usable") as caught:
        check_compatibility(write_plan(tmp_path))
    assert caught.value.exit_code == 4


def test_without_a_gpu_only_the_file_is_looked_at(board: Board, tmp_path: Path) -> None:
    board.gpus, board.system = (), ("Linux", "x86_64")
    plan = write_plan(tmp_path)
    assert check_compatibility(plan)[1] == ()
    plan.write_bytes(CONTENT + b"!")
    with pytest.raises(InputError, match="not the file its manifest describes"):
        check_compatibility(plan)


# What NVIDIA says of versions: `runs_in` has the addresses.
@pytest.mark.parametrize(
    ("built", "here", "compatible", "runs"),
    [
        ("10.3.0", "10.3.0", False, True),
        ("10.3.0", "10.3.0.30", False, True),  # packages leave the build number out
        ("10.3.0.26", "10.3.0.30", False, False),
        ("10.3.0", "10.3.1", False, False),
        ("10.3.0", "10.13.0", False, False),
        ("10.3.0", "10.13.0", True, True),
        ("10.13.0", "10.3.0", True, False),
        ("10.3.0", "11.1.0", True, True),
        ("8.6.1", "10.0.1", True, True),
        ("8.6.1", "11.0.0", True, False),
        ("11.0.0", "10.16.1", True, False),
        ("10.16.1", "12.0.0", True, False),  # not known yet, so not promised
        ("", "10.3.0", False, True),  # left to the runtime
        ("10.3.0", "unknown", False, True),
    ],
)
def test_versions_of_tensorrt(built: str, here: str, compatible: bool, runs: bool) -> None:
    info = replace(ORIN, version=built, options=BuildConfig(version_compat=compatible))
    assert runs_in(info, here) is runs


@pytest.mark.parametrize(("here", "runs"), [("1.7.1", True), ("1.7.1.116", True), ("1.7.2", False), ("1.8.0", False)])
def test_plans_of_tensorrt_for_rtx_run_in_their_release_only(here: str, runs: bool) -> None:
    assert runs_in(RTX, here) is runs
    assert runs_in(replace(RTX, options=BuildConfig(version_compat=True)), here) is runs


@pytest.mark.parametrize(
    ("level", "gpus"),
    [
        ("none", {"8.7": True, "8.6": False, "8.9": False, "12.0": False, "7.5": False}),
        ("same-cc", {"8.7": True, "8.6": False, "8.9": False}),
        ("ampere+", {"8.7": True, "8.6": True, "8.0": True, "8.9": True, "12.0": True, "7.5": False}),
    ],
)
def test_gpus(level: Any, gpus: dict[str, bool]) -> None:
    info = replace(ORIN, options=BuildConfig(hardware_compat=level))
    assert {capability: runs_on(info, capability) for capability in gpus} == gpus
    assert runs_on(replace(info, compute_capabilities=()), "5.3")  # the builder's default GPUs


def test_a_portable_plan_runs_elsewhere(board: Board, tmp_path: Path) -> None:
    board.gpus = (gpu("Ada", "8.9"),)
    board.installed["tensorrt"] = untouchable("10.13.0")
    portable = replace(ORIN, options=BuildConfig(hardware_compat="ampere+", version_compat=True))
    assert check_compatibility(write_plan(tmp_path, portable))[1] == ()


def test_a_plan_of_tensorrt_for_rtx_changes_systems(board: Board, tmp_path: Path) -> None:
    board.gpus, board.system = (gpu("Ada", "8.9"),), ("Windows", "AMD64")
    board.installed = {"tensorrt-rtx": untouchable("1.7.1.116")}
    assert check_compatibility(write_plan(tmp_path, replace(RTX, system="linux-x86_64")))[1] == ()


@pytest.mark.parametrize(
    ("built_under", "here", "warns"),
    [
        ("540.4.0, CUDA 12.6", "540.4.0", False),
        ("540.3.0, CUDA 12.4", "540.4.0", False),
        ("560.35.05, CUDA 12.6", "540.4.0", True),
        ("CUDA 12.8", "540.4.0", True),
        ("CUDA 12.6", "540.4.0", False),
        (None, "540.4.0", False),
    ],
)
def test_an_older_driver_is_a_warning(
    built_under: str | None, here: str, warns: bool, board: Board, tmp_path: Path
) -> None:
    board.driver = here
    notes = check_compatibility(write_plan(tmp_path, replace(ORIN, driver=built_under)))[1]
    assert bool(notes) is warns
    if warns:
        assert "540.4.0, CUDA 12.6" in notes[0]
        assert str(built_under) in notes[0]


def test_another_gpu_of_the_same_kind_is_a_warning(board: Board, tmp_path: Path) -> None:
    (note,) = check_compatibility(write_plan(tmp_path, replace(ORIN, gpu="Orin Nano")))[1]
    assert "built on Orin Nano and runs on Orin" in note
    same_cc = BuildConfig(hardware_compat="same-cc")
    assert check_compatibility(write_plan(tmp_path, replace(ORIN, gpu="Orin Nano", options=same_cc)))[1] == ()


NANO, AGX = "NVIDIA Jetson Orin Nano Developer Kit", "NVIDIA Jetson AGX Orin Developer Kit"


@pytest.mark.parametrize(
    ("built_on", "here", "warns"),
    [(AGX, NANO, True), (AGX, AGX, False), (None, NANO, False), (AGX, None, False), (None, None, False)],
)
def test_another_orin_is_a_warning(
    built_on: str | None, here: str | None, warns: bool, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA calls all their GPUs "Orin", 8.7."""
    monkeypatch.setattr(compatibility, "jetson_model", lambda: here)
    warnings = compatibility.check_plan(Path("tiny.plan"), replace(ORIN, board=built_on))
    assert bool(warnings) is warns
    if warns:
        assert f"built on {AGX} and runs on {NANO}" in warnings[0]
        same_cc = replace(ORIN, options=BuildConfig(hardware_compat="same-cc"))
        assert compatibility.check_plan(Path("tiny.plan"), replace(same_cc, board=built_on)) == ()


def test_the_boards_name_is_the_device_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, board: Board) -> None:
    (tmp_path / "model").write_bytes(NANO.encode() + bytes(1))
    monkeypatch.setattr(device, "JETSON_MODEL", tmp_path / "model")
    (note,) = compatibility.check_plan(Path("tiny.plan"), replace(ORIN, board=AGX))
    assert f"runs on {NANO}, where" in note


@pytest.mark.parametrize("trusted", [False, True])
def test_a_plan_that_is_not_its_manifests_is_refused(trusted: bool, board: Board, tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    write_onnx_manifest(tmp_path)
    plan.write_bytes(CONTENT[::-1])
    with pytest.raises(InputError, match="not the file its manifest describes"):
        open_session(plan, SessionOptions(trust=trusted))


def test_a_plan_without_a_manifest_is_refused(board: Board, tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    write_onnx_manifest(tmp_path)
    manifest_path(plan).unlink()
    with pytest.raises(InputError, match="has no manifest") as caught:
        open_session(plan)
    assert "native code" in caught.value.why
    assert "tiny.plan.manifest.json" in caught.value.why
    assert rebuild(plan) in caught.value.cure
    assert "--trust" in caught.value.cure


def test_trust_needs_the_manifest_of_the_onnx_file(board: Board, tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    manifest_path(plan).unlink()
    with pytest.raises(InputError, match="neither has its ONNX file") as caught:
        open_session(plan, SessionOptions(trust=True))
    assert "tiny.onnx.manifest.json" in caught.value.cure
    (tmp_path / "tiny.onnx.manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is not valid JSON"):
        open_session(plan, SessionOptions(trust=True))
    plan.unlink()
    with pytest.raises(InputError, match="There is no model at"):
        open_session(plan, SessionOptions(trust=True))


def test_the_manifest_of_a_trusted_plan(board: Board, tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    source = write_onnx_manifest(tmp_path)
    manifest_path(plan).unlink()
    manifest, notes = check_compatibility(plan, trust=True)
    assert (manifest.kind, manifest.artefact_sha256, manifest.parent_sha256) == ("plan", sha256_of(plan), "e" * 64)
    assert (manifest.inputs, manifest.outputs, manifest.preprocess) == (
        source.inputs,
        source.outputs,
        source.preprocess,
    )
    assert manifest.engine is not None
    assert (manifest.engine.flavour, manifest.engine.version) == ("tensorrt", "")
    (note,) = notes
    assert "has no manifest and is trusted" in note
    assert not manifest_path(plan).exists()
    board.installed = {"tensorrt-rtx": untouchable("1.7.1")}
    manifest = check_compatibility(plan, trust=True)[0]
    assert manifest.engine is not None
    assert manifest.engine.flavour == "tensorrt-rtx"  # what is installed
    board.installed["tensorrt"] = untouchable("10.3.0")
    for wanted in ("tensorrt", "tensorrt-rtx"):
        manifest = check_compatibility(plan, trust=True, wanted=wanted)[0]
        assert manifest.engine is not None
        assert manifest.engine.flavour == wanted


@pytest.mark.parametrize("name", SHIPPED)
def test_trtexecs_plan_of_a_shipped_model(name: str, board: Board, tmp_path: Path) -> None:
    """Its ONNX file and that file's manifest are in the package."""
    plan = tmp_path / f"{name}.plan"
    plan.write_bytes(CONTENT)
    with pytest.raises(InputError, match="has no manifest"):
        check_compatibility(plan)
    manifest, notes = check_compatibility(plan, trust=True)
    assert manifest.parent_sha256 == sha256_of(SHIPPED[name])
    assert manifest.precision == ("fp16" if "fp16" in name else "fp32")
    assert f"taken from {SHIPPED[name].name};" in notes[0]
    own = replace(MANIFEST, kind="onnx", artefact_sha256="e" * 64, engine=None)
    (tmp_path / f"{name}.onnx.manifest.json").write_text(json.dumps(asdict(own)), encoding="utf-8")
    assert check_compatibility(plan, trust=True)[0].parent_sha256 == "e" * 64  # what lies beside it goes first


@pytest.mark.parametrize(
    ("head", "flavour", "version"),
    [
        (b"ftrt" + bytes(20) + bytes([10, 3, 0, 30]), "tensorrt", "10.3.0.30"),
        (b"vtrt" + bytes(20) + bytes([1, 7, 1, 116]), "tensorrt-rtx", "1.7.1.116"),
        (b"vtrt" + bytes(20) + bytes([200, 7, 1, 116]), "tensorrt-rtx", ""),
        (b"abcd" + bytes(20) + bytes([10, 3, 0, 30]), None, ""),
        (b"ftrt", None, ""),
    ],
)
def test_a_plans_first_bytes(head: bytes, flavour: str | None, version: str, tmp_path: Path) -> None:
    plan = tmp_path / "tiny.plan"
    plan.write_bytes(head)
    assert compatibility._header(plan) == (flavour, version)


def test_a_trusted_plan_of_another_version_is_refused(board: Board, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, content=b"ftrt" + bytes(20) + bytes([10, 13, 3, 9]))
    write_onnx_manifest(tmp_path)
    manifest_path(plan).unlink()
    with pytest.raises(InputError, match="was not built for this machine") as caught:
        open_session(plan, SessionOptions(trust=True))
    assert "10.13.3.9" in caught.value.why


@pytest.fixture
def fake_gpu(board: Board, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A runtime that does run plans, on a GPU in host memory."""
    fake = FakeCuda()
    board.installed["tensorrt"] = fake_module(Script(fake))
    monkeypatch.setattr(cuda, "runtime", lambda: fake)
    monkeypatch.setattr(engine, "nvidia_gpus", lambda: board.gpus)
    monkeypatch.setattr(tensorrt, "import_runtime", lambda flavour: board.installed[flavour])
    yield
    trt_logger.cache_clear()


@pytest.mark.usefixtures("fake_gpu")
def test_doubts_are_in_the_sessions_notes(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, replace(ORIN, gpu="Orin Nano"))
    with open_session(plan)[0] as session:
        assert "Orin Nano" in session.notes[0]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("fake_gpu")
def test_a_trusted_plan_runs(tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    write_onnx_manifest(tmp_path)
    manifest_path(plan).unlink()
    session, manifest = open_session(plan, SessionOptions(trust=True))
    with session:
        np.testing.assert_allclose(session.infer({"image": frame()})["depth"], depth_of(frame()), rtol=1e-6)
        assert "trusted" in session.notes[0]  # type: ignore[attr-defined]
    assert manifest is not None
    assert manifest.kind == "plan"


@pytest.mark.parametrize("name", ["nano.onnx", "nano.safetensors"])
def test_trust_is_for_plans(name: str) -> None:
    with pytest.raises(OptionError, match="--trust does not apply"):
        open_session(NANO_ONNX["fp32"].with_name(name), SessionOptions(trust=True))


def test_a_real_plans_header_and_its_refusal(tmp_path: Path) -> None:
    """The real builder's file; its own module says the version."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    if nvidia_gpus():
        pytest.skip("this machine has a GPU")
    from mirrordepth_edge.engines.build import build_engine, plan_build

    plan = tmp_path / "nano.plan"
    build_engine(Artefact.open(NANO_ONNX["fp16"]), plan, plan_build("rtx-ada"))
    assert compatibility._header(plan) == ("tensorrt-rtx", rtx.__version__)
    assert check_compatibility(plan)[1] == ()
    with pytest.raises(MissingError, match="needs an NVIDIA GPU"):
        open_session(plan)
    manifest_path(plan).unlink()
    (tmp_path / "nano.onnx.manifest.json").write_bytes(manifest_path(NANO_ONNX["fp16"]).read_bytes())
    with pytest.raises(InputError, match="has no manifest"):
        open_session(plan)
    with pytest.raises(MissingError, match="needs an NVIDIA GPU"):
        open_session(plan, SessionOptions(trust=True))
