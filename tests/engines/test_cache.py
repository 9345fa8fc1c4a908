"""The engine cache: engines are built once, and rebuilt with a reason when anything changes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from mirrordepth_edge.artefact import NANO_ONNX, Artefact
from mirrordepth_edge.config import BuildConfig
from mirrordepth_edge.engines import build
from mirrordepth_edge.engines import cache as engine_cache
from mirrordepth_edge.engines.build import BuildPlan, plan_build
from mirrordepth_edge.engines.cache import RECORD, Cached, cached_engine
from mirrordepth_edge.engines.worker import BuildProgress
from mirrordepth_edge.errors import GateError, InputError, MissingError
from mirrordepth_edge.machine import driver as driver_module
from mirrordepth_edge.machine.device import Gpu
from mirrordepth_edge.manifest import EngineInfo, manifest_path, read_manifest, write_artefact
from mirrordepth_edge.support.cache import ABANDONED_S
from mirrordepth_edge.support.files import sha256_of

ORIN = Gpu(name="Orin", compute_capability="8.7", memory_mib=7620, integrated=True, cuda="12.6")
PLAN = BuildPlan(flavour="tensorrt", compute_capabilities=("8.7",), runs_here=True, version="10.3.0")
DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n"


def write_tiny(path: Path, name: str = "tiny") -> Path:
    """A model whose depth is the mean of the colour channels, with its manifest."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["depth"], axes=[3], keepdims=0),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 32, 64, 3])
    depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, 32, 64])
    graph = helper.make_graph(nodes, name, [image], [depth])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    nano = read_manifest(NANO_ONNX["fp32"])
    manifest = replace(
        nano,
        artefact_sha256=sha256_of(path),
        inputs=(replace(nano.inputs[0], name="image", shape=(1, 32, 64, 3)),),
        outputs=(replace(nano.outputs[0], name="depth", shape=(1, 32, 64)),),
    )
    write_artefact(path, path.read_bytes(), manifest)
    return path


@dataclass
class Board:
    """A machine whose builder writes a numbered file instead of an engine."""

    folder: Path
    patch: pytest.MonkeyPatch
    plan: BuildPlan = PLAN
    built: int = 0
    meanwhile: Callable[[], object] = lambda: None
    verifies: bool = True
    """Whether engines are verified before they are written."""

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.onnx = write_tiny(self.folder / "tiny.onnx")
        self.cache = self.folder / "cache"
        self.driver(DRIVER)
        self.gpu(ORIN)
        self.patch.setattr(engine_cache.platform, "system", lambda: "Linux")
        self.patch.setattr(engine_cache.platform, "machine", lambda: "aarch64")
        self.patch.setattr(build, "plan_build", lambda target: self.plan)
        self.patch.setattr(build, "build_engine", self._build)

    def gpu(self, *gpus: Gpu) -> None:
        self.patch.setattr(engine_cache, "nvidia_gpus", lambda: gpus)

    def driver(self, text: str) -> None:
        path = self.folder / "driver"
        path.write_text(text, encoding="utf-8")
        self.patch.setattr(driver_module, "VERSION_FILE", path)

    def _build(
        self, onnx: Artefact, output: Path, plan: BuildPlan, options: BuildConfig, tell: Callable[..., None]
    ) -> None:
        self.built += 1
        number = self.built
        tell(BuildProgress(phase="Timing", fraction=0.42))
        self.meanwhile()
        source = onnx.manifest
        content = b"engine %d" % number
        output.write_bytes(content)
        info = EngineInfo(flavour=plan.flavour, version=plan.version, compute_capabilities=(), build_seconds=1.0)
        made = replace(source, kind="plan", artefact_sha256=sha256_of(output), engine=info)
        if self.verifies:
            made = replace(made, parity=replace(source.parity, backend=plan.flavour))
        write_artefact(output, content, replace(made, parent_sha256=source.artefact_sha256))

    def engine(self, **about: Any) -> Cached:
        return cached_engine(Artefact.open(self.onnx), folder=self.cache, **about)

    def kept(self) -> set[Path]:
        return set(self.cache.rglob("*.plan"))


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    return Board(tmp_path / "board", monkeypatch)


def test_an_engine_is_built_once(board: Board) -> None:
    stages: list[str] = []
    first = board.engine(on_stage=stages.append)
    assert (first.built, first.why) == (True, "not built here before")
    assert stages == ["building with TensorRT 10.3.0", "building with TensorRT 10.3.0, 42%"]
    assert first.path.name == "tiny.tensorrt.plan"
    assert first.path.is_relative_to(board.cache)
    assert read_manifest(first.path).parent_sha256 == sha256_of(board.onnx)

    stages.clear()
    again = board.engine(on_stage=stages.append)
    assert (again.path, again.built, board.built, stages) == (first.path, False, 1, [])
    assert "by TensorRT 10.3.0" in again.why
    assert len(list(board.cache.rglob("*"))) == 1 + 3, "a folder, and in it the engine, its manifest and its record"


def test_the_record_lists_file_options_and_environment(board: Board) -> None:
    path = board.engine(options=BuildConfig(optimisation_level=5)).path
    record = json.loads(path.with_name(RECORD).read_text(encoding="utf-8"))
    assert record["onnx"] == "tiny.onnx"
    assert record["onnx_sha256"] == sha256_of(board.onnx)
    assert record["options"]["optimisation_level"] == 5
    assert {k: v for k, v in record["environment"].items() if k != "package"} == {
        "flavour": "tensorrt",
        "version": "10.3.0",
        "gpu": "Orin",
        "compute_capability": "8.7",
        "driver": "540.4.0, CUDA 12.6",
        "system": "linux-aarch64",
    }


CHANGES: dict[str, tuple[Callable[[Board], None], str]] = {
    "version": (
        lambda board: setattr(board, "plan", replace(PLAN, version="10.7.0")),
        "TensorRT 10.3.0 → 10.7.0",
    ),
    "flavour": (
        lambda board: setattr(board, "plan", replace(PLAN, flavour="tensorrt-rtx", version="1.7.1")),
        "TensorRT 10.3.0 → TensorRT for RTX 1.7.1",
    ),
    "gpu": (lambda board: board.gpu(replace(ORIN, name="Orin (nvgpu)")), "GPU Orin → Orin (nvgpu)"),
    "capability": (
        lambda board: setattr(board, "plan", replace(PLAN, compute_capabilities=("11.0",))),
        "compute capability 8.7 → 11.0",
    ),
    "driver": (
        lambda board: board.driver(DRIVER.replace("540.4.0", "540.5.0")),
        "driver 540.4.0, CUDA 12.6 → 540.5.0, CUDA 12.6",
    ),
    "system": (
        lambda board: board.patch.setattr(engine_cache.platform, "machine", lambda: "x86_64"),
        "system linux-aarch64 → linux-x86_64",
    ),
    "package": (
        lambda board: board.patch.setattr(engine_cache, "__version__", "99.0"),
        f"mirrordepth-edge {engine_cache.__version__} → 99.0",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_the_environment_causes_a_rebuild_and_is_the_reason(what: str, board: Board) -> None:
    change, why = CHANGES[what]
    first = board.engine()
    change(board)
    other = board.engine()
    assert other.built
    assert other.why == why
    assert other.path != first.path
    assert not board.engine().built


def test_the_reason_lists_every_change(board: Board) -> None:
    board.engine()
    CHANGES["version"][0](board)
    CHANGES["driver"][0](board)
    assert board.engine().why == "TensorRT 10.3.0 → 10.7.0, driver 540.4.0, CUDA 12.6 → 540.5.0, CUDA 12.6"


def test_the_reason_is_the_difference_to_the_engine_used_last(board: Board) -> None:
    board.engine()
    board.plan = replace(PLAN, version="10.7.0")
    board.engine()
    board.plan = PLAN
    time_travel(board.engine(), +10)
    board.plan = replace(PLAN, version="10.9.0")
    assert board.engine().why == "TensorRT 10.3.0 → 10.9.0"


def test_other_files_and_options_have_other_engines(board: Board) -> None:
    first = board.engine()
    assert board.engine(options=BuildConfig()).path == first.path, "None is the builder's own settings"
    other = board.engine(options=BuildConfig(workspace_gib=1.0))
    assert (other.built, other.why) == (True, "not built here before")
    write_tiny(board.onnx, name="changed")
    changed = board.engine()
    assert (changed.built, changed.why) == (True, "not built here before")
    assert len({first.path, other.path, changed.path}) == 3
    assert board.engine(options=BuildConfig(workspace_gib=1.0)).path != other.path, "it was of the other file"


def test_a_damaged_engine_is_rebuilt(board: Board) -> None:
    damages: tuple[Callable[[Path], object], ...] = (
        lambda path: path.write_bytes(b"cut"),
        lambda path: path.unlink(),
        lambda path: manifest_path(path).unlink(),
        lambda path: manifest_path(path).write_text("{"),
    )
    for number, damage in enumerate(damages, 1):
        damage(board.engine().path)
        again = board.engine()
        assert (again.built, again.why, board.built) == (True, "the kept engine is damaged", 1 + number)
        assert read_manifest(again.path).kind == "plan"


def test_an_engine_that_was_not_verified_is_rebuilt(board: Board) -> None:
    """Older versions wrote such engines if cuda-python was missing."""
    board.verifies = False
    first = board.engine()
    board.verifies = True
    again = board.engine()
    assert (again.built, again.path, board.built) == (True, first.path, 2)
    assert again.why == "the kept engine was never compared with its ONNX file"
    assert again.path.read_bytes() == b"engine 2"
    assert not board.engine().built


def test_an_engine_for_another_gpu_need_not_be_verified(board: Board) -> None:
    board.verifies = False
    board.plan = replace(PLAN, runs_here=False)
    board.engine()
    assert not board.engine().built


@pytest.mark.parametrize("record", ["", "{", "[]", '{"onnx": 3}'])
def test_an_unreadable_record_does_not_cause_a_rebuild(record: str, board: Board) -> None:
    board.engine().path.with_name(RECORD).write_text(record, encoding="utf-8")
    again = board.engine()
    assert (again.built, again.why) == (False, "built before")


def test_a_failed_build_leaves_nothing(board: Board) -> None:
    def refuse() -> None:
        raise GateError("Its depth is wrong.", "", "")

    board.meanwhile = refuse
    with pytest.raises(GateError):
        board.engine()
    assert [path for path in board.cache.rglob("*") if not path.is_dir()] == []
    board.meanwhile = lambda: None
    assert board.engine().why == "not built here before"


def test_the_first_of_two_simultaneous_builds_is_kept(board: Board) -> None:
    others: list[Cached] = []

    def another_process() -> None:
        board.meanwhile = lambda: None
        others.append(board.engine())

    board.meanwhile = another_process
    own = board.engine()
    assert board.built == 2
    assert own.path == others[0].path
    assert own.path.read_bytes() == b"engine 2", "the other one's, which may be in use"
    assert read_manifest(own.path).engine is not None
    assert len(board.kept()) == 1
    assert not list(board.cache.glob(".*"))


def time_travel(engine: Cached, seconds: float) -> None:
    entry = engine.path.parent
    when = entry.stat().st_mtime + seconds
    os.utime(entry, (when, when))


def test_engines_of_older_environments_are_evicted(board: Board) -> None:
    engines = []
    for place, version in enumerate(("10.3.0", "10.7.0", "10.9.0")):
        board.plan = replace(PLAN, version=version)
        engines.append(board.engine())
        time_travel(engines[-1], -100 + place)
    assert board.kept() == {engine.path for engine in engines[1:]}
    board.plan = replace(PLAN, version="10.7.0")
    time_travel(board.engine(), 10)  # used again
    board.plan = replace(PLAN, version="10.13.0")
    newest = board.engine()
    assert board.kept() == {engines[1].path, newest.path}


def test_the_cache_is_limited_in_size(board: Board) -> None:
    engines = []
    for name in ("a", "b", "c"):
        write_tiny(board.onnx, name)
        engines.append(board.engine())
        time_travel(engines[-1], -100 + len(engines))
    size = sum(file.stat().st_size for file in engines[0].path.parent.iterdir())
    board.patch.setattr(engine_cache, "MAX_BYTES", 2 * size + 10)
    write_tiny(board.onnx, "d")
    last = board.engine()
    assert board.kept() == {engines[2].path, last.path}
    board.patch.setattr(engine_cache, "MAX_BYTES", 1)
    write_tiny(board.onnx, "e")
    newest = board.engine()
    assert board.kept() == {newest.path}, "the one just built stays, however large"


def test_only_engines_and_abandoned_files_are_deleted(board: Board) -> None:
    board.cache.mkdir()
    export = board.cache / "0123456789abcdef" / "nano.onnx"
    export.parent.mkdir()
    export.write_bytes(b"x")
    board.engine()
    left, running = board.cache / ".dead", board.cache / ".busy"
    for scratch in (left, running):
        scratch.mkdir()
        (scratch / RECORD).write_text("{}", encoding="utf-8")
    old = left.stat().st_mtime - ABANDONED_S - 1
    os.utime(left, (old, old))
    board.patch.setattr(engine_cache, "MAX_BYTES", 1)
    board.plan = replace(PLAN, version="10.7.0")
    board.engine()
    assert export.exists()
    assert running.exists(), "another process builds there"
    assert not left.exists()


def test_a_cache_that_cannot_be_written(board: Board) -> None:
    board.cache.write_text("a file")
    with pytest.raises(InputError, match="Cannot write"):
        board.engine()


def test_the_error_without_a_gpu_names_where_to_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "nvidia_gpus", lambda: ())
    with pytest.raises(MissingError, match="no NVIDIA GPU") as caught:
        cached_engine(Artefact.open(NANO_ONNX["fp16"]), folder=tmp_path)
    assert "mde build model.onnx" in caught.value.cure
    assert not list(tmp_path.iterdir())


def test_the_default_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    own = Board(tmp_path / "board", monkeypatch)
    engine = cached_engine(Artefact.open(own.onnx))
    assert engine.path.is_relative_to(tmp_path / "mirrordepth-edge" / "engines")


def test_a_real_engine_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    source, plan = write_tiny(tmp_path / "tiny.onnx"), plan_build("rtx-ada")
    stages: list[str] = []
    first = cached_engine(Artefact.open(source), folder=tmp_path / "cache", plan=plan, on_stage=stages.append)
    manifest = read_manifest(first.path)
    assert manifest.engine is not None
    assert asdict(manifest.engine)["options"] == asdict(BuildConfig())
    assert stages[0].startswith("building with TensorRT for RTX ")
    again = cached_engine(Artefact.open(source), folder=tmp_path / "cache", plan=plan)
    assert (again.path, again.built) == (first.path, False)
