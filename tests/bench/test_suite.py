"""Suites: what they say, what they need, and that one case's failure is not the others'."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirrordepth_edge import __version__, recipes
from mirrordepth_edge.artefact import NANO_CHECKPOINT, NANO_ONNX, Artefact
from mirrordepth_edge.backends.base import Arrays, CheckedSession
from mirrordepth_edge.backends.registry import MODULES
from mirrordepth_edge.bench import artefacts
from mirrordepth_edge.bench import suite as module
from mirrordepth_edge.bench.artefacts import PRESET, ArtefactRequest, cache_folder, find_or_make
from mirrordepth_edge.bench.compare import read_result
from mirrordepth_edge.bench.measure import Candidate
from mirrordepth_edge.bench.stats import ratio_interval
from mirrordepth_edge.bench.suite import (
    FOLDER,
    Case,
    Place,
    Suite,
    SuiteResult,
    describe_scaling,
    device_slug,
    load_suite,
    measure,
    open_cases,
    store,
)
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.config import PRESETS, ExportConfig, ModelConfig, SessionOptions
from mirrordepth_edge.engines import build
from mirrordepth_edge.engines.build import BuildPlan
from mirrordepth_edge.errors import GateError, InputError, MdeError, MissingError, OptionError
from mirrordepth_edge.export import produce
from mirrordepth_edge.export import trace as export
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.manifest import (
    EngineInfo,
    Manifest,
    Parity,
    TensorSpec,
    input_spec,
    manifest_path,
    output_spec,
    read_manifest,
    write_artefact,
)
from mirrordepth_edge.predictor import DepthPredictor

SUITES = ("backends", "batch", "edge", "precision", "quick", "resolutions")
ROOT = Path(__file__).parents[2]
MODEL = PRESETS["nano"]
HEIGHT, WIDTH = MODEL.size_hw

HEAD = 'title = "t"\npurpose = "p"\n'
MINIMAL = HEAD + '[[case]]\nname = "a"\n'


def described(*cases: Case, **settings: Any) -> Suite:
    return Suite(title="t", purpose="p", case=cases, **{"iterations": 12, "warmup": 1, **settings})


def test_the_suites_that_ship() -> None:
    assert tuple(recipes.recipe_names(FOLDER)) == SUITES
    told = (recipes.recipe_folder(FOLDER) / "README.md").read_text(encoding="utf-8")
    for name in SUITES:
        loaded, suite = load_suite(name)
        assert loaded == name
        assert f"| `{name}` |" in told
        for case in suite.case:
            assert case.backend in (None, "openvino", *MODULES)
            assert case.model in (None, "nano", "nano.fp16", *(PRESET + preset for preset in PRESETS))
            # So that any model can be measured, whatever its patch or stride.
            assert all(side % 32 == 0 for side in case.size or ())
        if suite.law is not None:
            counts = {case.batch if suite.law == "batch" else case.size for case in suite.case}
            assert len(counts) == len(suite.case) >= 4


def test_all_keys_are_described() -> None:
    told = (recipes.recipe_folder(FOLDER) / "README.md").read_text(encoding="utf-8")
    for field in (*Suite.__dataclass_fields__, *Case.__dataclass_fields__):
        assert f"`{field}`" in told or f"[[{field}]]" in told


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="only the repository has it")
def test_suites_travel_in_the_wheel() -> None:
    included = recipes.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    table = included["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert table[FOLDER] == f"mirrordepth_edge/{recipes.INSTALLED.name}/{FOLDER}"


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL, encoding="utf-8")
    name, suite = load_suite(str(path))
    assert (name, suite.title, suite.case) == ("mine", "t", (Case(name="a"),))
    assert suite.case[0].frame == (480, 640)
    with pytest.raises(OptionError, match="slow") as caught:
        load_suite("slow")
    assert "quick" in caught.value.why


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('colour = "red"', "colour"),
        ('name = "a"', "not valid TOML"),
        ("batch = 0", "at least 1"),
        ("batch = 2", "batch needs protocol"),
        ("threads = -1", "at least 1"),
        ("size = [64]", "size"),
        ('size = "64x96"', "size"),
        ("frame = [0, 64]", "at least 1"),
        ('precision = "fp8"', "precision"),
        ('[[case]]\nname = "a"', "case names must be unique"),
        ('[[case]]\nname = "a/b"', "lower-case letters"),
        ('[[case]]\nname = "../a"', "lower-case letters"),
        ("[[case]]", "name"),
    ],
)
def test_an_invalid_suite_is_refused(change: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL + change, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_suite(str(path))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("iterations = 0", "at least 1"),
        ("warmup = -1", "at least 0"),
        ('protocol = "fast"', "protocol"),
        ('law = "colour"', "law"),
        ('law = "size"\n[[case]]\nname = "b"\nframe = [60, 80]', "frames of one size"),
    ],
)
def test_settings_of_a_suite_that_make_no_sense(change: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'{HEAD}{change}\n[[case]]\nname = "a"\n', encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_suite(str(path))
    assert words in str(caught.value)
    path.write_text(HEAD + "case = []\n", encoding="utf-8")
    with pytest.raises(InputError, match="not valid"):
        load_suite(str(path))


# What a case runs.


@pytest.mark.parametrize(
    ("wanted", "path"),
    [
        (ArtefactRequest(model="nano"), NANO_ONNX["fp32"]),
        (ArtefactRequest(model="nano.fp16"), NANO_ONNX["fp16"]),
        (ArtefactRequest(model="nano", precision="fp16"), NANO_ONNX["fp16"]),
        (ArtefactRequest(model="nano.fp16", precision="fp32"), NANO_ONNX["fp32"]),
        (ArtefactRequest(model="nano", size_hw=(224, 288)), NANO_ONNX["fp32"]),
        (ArtefactRequest(model="nano", backend="openvino"), NANO_ONNX["fp32"]),
        (ArtefactRequest(model="nano", backend="torch"), NANO_CHECKPOINT),
        (ArtefactRequest(model=str(NANO_CHECKPOINT), backend="torch", precision="fp32"), NANO_CHECKPOINT),
        (ArtefactRequest(model=str(NANO_ONNX["fp16"])), NANO_ONNX["fp16"]),
        (ArtefactRequest(model=str(NANO_ONNX["fp16"]), precision="fp16", size_hw=(224, 288)), NANO_ONNX["fp16"]),
    ],
)
def test_existing_files_are_used(wanted: ArtefactRequest, path: Path, tmp_path: Path) -> None:
    assert find_or_make(wanted, tmp_path / "cache").path == path
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (ArtefactRequest(model="preset:huge"), "vitb16"),
        (ArtefactRequest(model=str(NANO_ONNX["fp16"]), precision="fp32"), "FP16, 224x288 pixels and batch 1"),
        (ArtefactRequest(model=str(NANO_ONNX["fp32"]), size_hw=(64, 96)), "checkpoint"),
        (ArtefactRequest(model=str(NANO_ONNX["fp32"]), batch=2), "checkpoint"),
        (ArtefactRequest(model=str(NANO_ONNX["fp32"]), backend="torch"), "PyTorch runs only checkpoints"),
        (ArtefactRequest(model="preset:nano", backend="torch"), "PyTorch runs only checkpoints"),
        (ArtefactRequest(model="nano", backend="torch", batch=2), "with batch 1"),
        (ArtefactRequest(model="nano", backend="torch", precision="fp16"), "in FP32"),
        (ArtefactRequest(model="nano", backend="torch", size_hw=(64, 96)), "own size"),
        (ArtefactRequest(model="absent.onnx"), "No such file"),
        (ArtefactRequest(model="absent.safetensors"), "No such file"),
    ],
)
def test_requests_that_do_not_fit_are_refused(wanted: ArtefactRequest, words: str, tmp_path: Path) -> None:
    with pytest.raises((OptionError, InputError)) as caught:
        find_or_make(wanted, tmp_path)
    assert words in str(caught.value)


class Kitchen:
    """In place of exporting and building: says what it was asked for, and writes files that are whole."""

    def __init__(self) -> None:
        self.exported: list[ExportConfig] = []
        self.built = 0

    def manifest(self, model: ModelConfig, config: ExportConfig, content: bytes) -> Manifest:
        return Manifest(
            kind="onnx",
            artefact_sha256=hashlib.sha256(content).hexdigest(),
            parent_sha256="0" * 64,
            checkpoint_sha256="0" * 64,
            clip_sha256="0" * 64,
            trained=True,
            model=model,
            preprocess=model.preprocess,
            inputs=(input_spec(model, config),),
            outputs=(output_spec(model, config),),
            precision=config.precision,
            opset=config.opset,
            parity=Parity(runner="", frames=1, max_relative=0, mean_relative=0, limit=""),
            tools={},
        )

    def produce(self, network: ModelConfig, config: ExportConfig, output: Path, *_: Any, **about: Any) -> None:
        self.exported.append(config)
        self.trained = about["trained"]
        content = str(config).encode()
        assert config.size_hw is not None
        write_artefact(output, content, self.manifest(replace(network, size_hw=config.size_hw), config, content))

    def build(self, onnx: Artefact, output: Path, plan: BuildPlan, *_: Any) -> None:
        self.built += 1
        manifest = onnx.manifest
        content = b"plan"
        made = self.manifest(manifest.model, ExportConfig(precision=manifest.precision), content)
        proven = replace(made.parity, backend=plan.flavour)
        engine = EngineInfo(
            flavour=plan.flavour, version=plan.version, compute_capabilities=("8.7",), build_seconds=1.0
        )
        parent = manifest.artefact_sha256
        write_artefact(output, content, replace(made, parent_sha256=parent, engine=engine, parity=proven))


@pytest.fixture
def kitchen(monkeypatch: pytest.MonkeyPatch) -> Kitchen:
    own = Kitchen()
    monkeypatch.setattr(produce, "produce_onnx", own.produce)
    monkeypatch.setattr(produce, "untrained_network", lambda preset, size_hw: (PRESETS[preset], "1" * 64))
    monkeypatch.setattr(export, "require_export_packages", lambda: None)
    monkeypatch.setattr(build, "build_engine", own.build)
    checkpoint = pytest.importorskip("mirrordepth_edge.model.checkpoint", reason="PyTorch is not installed")
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path, **_: (MODEL, None))
    return own


def test_missing_artefacts_are_created_once(
    kitchen: Kitchen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    wanted = ArtefactRequest(model="nano", precision="fp16", size_hw=(64, 96), batch=2)
    path = find_or_make(wanted, tmp_path, on_stage=told.append).path
    assert path.is_relative_to(tmp_path)
    assert path.name == "nano.64x96.fp16.batch2.onnx"
    assert kitchen.exported == [ExportConfig(precision="fp16", size_hw=(64, 96), batch=2)]
    assert kitchen.trained
    assert told
    assert read_manifest(path).inputs[0].shape == (2, 64, 96, 3)

    told.clear()
    assert find_or_make(wanted, tmp_path, on_stage=told.append).path == path
    assert len(kitchen.exported) == 1
    assert not told
    others = (
        replace(wanted, batch=1),
        replace(wanted, precision=None),
        replace(wanted, size_hw=(96, 96)),
        replace(wanted, model=PRESET + "nano"),
    )
    assert len({path, *(find_or_make(other, tmp_path).path for other in others)}) == 5
    assert len(kitchen.exported) == 5
    assert not kitchen.trained, "the preset's weights are random"

    path.write_bytes(b"damaged")
    assert find_or_make(wanted, tmp_path).path == path
    assert read_manifest(path).precision == "fp16"
    manifest_path(path).unlink()
    assert find_or_make(wanted, tmp_path).path == path
    assert len(kitchen.exported) == 7
    monkeypatch.setattr(artefacts, "__version__", __version__ + ".1")
    assert find_or_make(wanted, tmp_path).path != path


def test_another_checkpoint_of_the_same_name_is_another_artefact(
    kitchen: Kitchen, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    namesake = tmp_path / tiny_checkpoint.name
    shutil.copy(NANO_CHECKPOINT, namesake)
    first, second = (
        find_or_make(ArtefactRequest(model=str(path)), tmp_path).path for path in (tiny_checkpoint, namesake)
    )
    assert first.name == "tiny.64x96.fp32.onnx"
    assert second.name == "tiny.224x288.fp32.onnx"
    assert first.parent != second.parent


def test_without_pytorch_the_reason_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(MissingError) as caught:
        find_or_make(ArtefactRequest(model="nano", batch=2), tmp_path)
    assert "pip install" in caught.value.cure


def test_an_engine_is_built_once_for_this_machine(
    kitchen: Kitchen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = BuildPlan(flavour="tensorrt", compute_capabilities=("8.7",), runs_here=True, version="10.3")
    monkeypatch.setattr(build, "plan_build", lambda target: plan)
    wanted = ArtefactRequest(model="nano.fp16", backend="tensorrt")
    path = find_or_make(wanted, tmp_path).path
    assert path.name == "nano.fp16.tensorrt.plan"
    assert find_or_make(wanted, tmp_path).path == path
    assert kitchen.built == 1
    assert find_or_make(replace(wanted, precision="fp32"), tmp_path).path != path
    monkeypatch.setattr(build, "plan_build", lambda target: replace(plan, version="10.4"))
    assert find_or_make(wanted, tmp_path).path != path, "an engine of another version does not load"
    assert kitchen.built == 3
    with pytest.raises(MissingError, match="tensorrt-rtx"):
        find_or_make(replace(wanted, backend="tensorrt-rtx"), tmp_path)


def test_without_a_gpu_no_engine_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "nvidia_gpus", lambda: ())
    with pytest.raises(MissingError):
        find_or_make(ArtefactRequest(model="nano", backend="tensorrt"), tmp_path)


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    assert cache_folder() == tmp_path / "mirrordepth-edge" / "suites"


# How cases are measured.


class StubSession(CheckedSession):
    """One depth everywhere; remembers who ran when."""

    backend, device, precision, version = "stub", "cpu", "fp32", "1.0"

    def __init__(self, name: str, log: list[str], depth_m: float, batch: int) -> None:
        self.name, self.log = name, log
        shape = (batch, HEIGHT, WIDTH)
        self.inputs = (TensorSpec(name="image", dtype="uint8", shape=(*shape, 3), layout="NHWC", range="", unit=""),)
        self.outputs = (TensorSpec(name="depth", dtype="float32", shape=shape, layout="NHW", range="", unit=""),)
        self.depth = np.full(shape, depth_m, np.float32)
        self.closed = False

    def infer(self, feeds: Mapping[str, Any]) -> Arrays:
        self.check(feeds)
        self.log.append(self.name)
        return {"depth": self.depth}

    def close(self) -> None:
        self.closed = True


class Stage:
    """In place of files and runtimes: cases named `missing…` cannot be made, `wrong…` give no depth."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.sessions: list[StubSession] = []
        self.options: dict[str, SessionOptions] = {}
        self.wanted: list[ArtefactRequest] = []
        monkeypatch.setattr(module, "find_or_make", self.find)
        monkeypatch.setattr(module, "open_candidate", self.open)

    def find(
        self, wanted: ArtefactRequest, folder: Path, *, clip_weights: Path | None, on_stage: Callable[[str], None]
    ) -> Path:
        self.wanted.append(wanted)
        on_stage("making")
        if wanted.model.startswith("missing"):
            raise MissingError("It is missing.", "It was never there.", "pip install it")
        return Path(wanted.model)

    def open(self, path: Path, options: SessionOptions, batch: int) -> Candidate:
        self.options[path.name] = options
        session = StubSession(path.name, self.log, np.nan if path.name.startswith("wrong") else 2.0, batch)
        self.sessions.append(session)
        return Candidate(predictor=DepthPredictor(session, MODEL, batch=batch), name=path.name, sha256="0" * 64)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def case(name: str, **settings: Any) -> Case:
    return Case(name=name, model=name, **{"frame": (60, 80), **settings})


def result_of(suite: Suite, frames: list[Frame]) -> SuiteResult:
    with open_cases(suite, frames) as cases:
        return measure("mine", suite, cases, frames)


def test_a_case_that_fails_is_a_row_and_the_rest_is_measured(stage: Stage, frames: list[Frame]) -> None:
    result = result_of(described(case("missing"), case("a"), case("wrong"), case("b")), frames)
    missing, first, wrong, second = result.rows
    assert isinstance(missing.problem, MissingError)
    assert isinstance(wrong.problem, GateError)
    for row in (missing, wrong):
        assert (row.result, row.ratio, row.place) == (None, None, None)
    assert first.problem is None
    assert first.ratio is None
    assert first.result is not None
    assert second.result is not None
    assert second.ratio == ratio_interval(second.result.frames_ms, first.result.frames_ms, paired=True)
    assert [place.number for place, _ in result.measured] == [1, 3]
    assert result.scaling() is None
    assert all(session.closed for session in stage.sessions)


def test_cases_are_timed_in_turn(stage: Stage, frames: list[Frame]) -> None:
    result = result_of(described(case("a"), case("b"), case("c")), frames)
    assert stage.log[-36:] == ["a", "b", "c"] * 12
    assert [len(measured.frames_ms) for _, measured in result.measured] == [12, 12, 12]


def test_frames_of_another_size_are_timed_apart_and_have_no_ratio(stage: Stage, frames: list[Frame]) -> None:
    result = result_of(described(case("a"), case("large", frame=(120, 160)), case("b")), frames)
    untimed = len(frames) + 1
    assert stage.log[-36 - untimed :] == [*["a", "b"] * 12, *["large"] * (untimed + 12)]
    assert [row.ratio is None for row in result.rows] == [True, True, False]
    assert [measured.frame for _, measured in result.measured] == ["80x60", "160x120", "80x60"]


def test_a_case_says_how_it_runs(stage: Stage, frames: list[Frame]) -> None:
    suite = described(
        Case(name="plain", frame=(60, 80)),
        case("other", threads=1, backend="openvino", bf16=True, precision="fp16", size=(64, 96), batch=3),
        protocol="network",
    )
    options = SessionOptions(device="cpu", clip_weights=Path("weights"))
    told: list[tuple[int, str]] = []
    with open_cases(suite, frames, model="mine", options=options, on_stage=lambda *news: told.append(news)) as cases:
        result = measure("mine", suite, cases, frames)
    assert stage.wanted == [
        ArtefactRequest(model="mine"),
        ArtefactRequest(model="other", precision="fp16", size_hw=(64, 96), batch=3, backend="openvino"),
    ]
    assert stage.options == {
        "mine": replace(options, yields=True),
        "other": replace(options, threads=1, backend="openvino", bf16=True, yields=True),
    }
    assert told == [(0, "plain: opening"), (0, "plain: making"), (1, "other: opening"), (1, "other: making")]
    assert [(place.case, place.batch) for place, _ in result.measured] == [("plain", 1), ("other", 3)]


def test_progress_counts_every_frame(stage: Stage, frames: list[Frame]) -> None:
    suite, ticks = described(case("a"), case("b")), []
    with open_cases(suite, frames) as cases:
        measure("mine", suite, cases, frames, lambda: ticks.append(1))
    assert len(ticks) == 2 * suite.iterations


def test_ctrl_c_closes_what_was_opened(stage: Stage, frames: list[Frame]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    suite = described(case("a"), case("b"))
    with pytest.raises(KeyboardInterrupt), open_cases(suite, frames) as cases:
        measure("mine", suite, cases, frames, interrupt)
    assert [session.closed for session in stage.sessions] == [True, True]

    def at_the_second(ready: int, _: str) -> None:
        if ready == 1:
            raise KeyboardInterrupt

    stage.sessions.clear()
    with pytest.raises(KeyboardInterrupt), open_cases(suite, frames, on_stage=at_the_second):
        pass
    assert [session.closed for session in stage.sessions] == [True]


def test_an_error_while_timing_applies_to_all_interleaved_cases(
    stage: Stage, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OptionError("No clock.", "It stopped.", "Wind it.")

    monkeypatch.setattr(module, "bench", fail)
    result = result_of(described(case("a"), case("missing"), case("b")), frames)
    assert [isinstance(row.problem, MdeError) for row in result.rows] == [True, True, True]
    assert [row.problem.what for row in result.rows if row.problem] == ["No clock.", "It is missing.", "No clock."]
    assert result.measured == []


def test_scaling_of_batches_counts_frames(stage: Stage, frames: list[Frame]) -> None:
    batches = (1, 2, 4, 8)
    suite = described(*(case(f"b{n}", batch=n) for n in batches), protocol="network", law="batch")
    result = result_of(suite, frames)
    assert [(place.count, place.unit) for place, _ in result.measured] == [(n, "frame") for n in batches]
    fed = [session.inputs[0].shape[0] for session in stage.sessions]
    assert fed == list(batches)
    assert result.scaling() == describe_scaling([(place, one.frames_ms) for place, one in result.measured])


def place_of(count: int, unit: str = "token") -> Place:
    return Place(suite="s", case=str(count), number=0, measured="", batch=1, count=count, unit=unit)


def test_describe_scaling() -> None:
    measured = [(place_of(n), np.full(20, 0.5 + 0.25 * n)) for n in (1, 2, 4, 8)]
    assert describe_scaling(measured).startswith("0.5 ms (0.5 to 0.5) + 0.25 ms (0.25 to 0.25) per token: ")
    assert describe_scaling(measured[:3]).startswith("A scaling model cannot be fitted to 3 sizes. ")
    assert describe_scaling([]).startswith("A scaling model cannot be fitted to 0 sizes. ")


def test_stored_results_are_read_again(stage: Stage, frames: list[Frame], tmp_path: Path) -> None:
    result = result_of(described(case("a"), case("missing"), case("b.1")), frames)
    result = replace(result, name="My suite")
    paths = store(result, tmp_path)
    assert [path.name for path in paths] == ["mine-a.json", "mine-b.1.json"]
    assert len({path.parent.parent for path in paths} | {tmp_path}) == 1
    for path, (place, measured) in zip(paths, result.measured, strict=True):
        stored = read_result(path)
        np.testing.assert_allclose(stored.samples_ms, measured.frames_ms, rtol=0, atol=3e-6)
        data = json.loads(path.read_text(encoding="utf-8"))
        assert data["suite"]["case"] == place.case
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", data["suite"]["measured"])
    assert {json.loads(path.read_text(encoding="utf-8"))["suite"]["measured"] for path in paths} == {
        result.measured[0][0].measured
    }


@pytest.mark.parametrize(
    ("cpu", "cores", "jetson", "devices", "slug"),
    [
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", 2, None, ("cpu", "cpu"), "intel-xeon-2-cores"),
        ("AMD Ryzen 7 5800X 8-Core Processor", 16, None, ("cpu",), "amd-ryzen-7-5800x-8-core-16-cores"),
        ("AMD EPYC", 8, None, ("cpu", "NVIDIA H100 80GB HBM3"), "nvidia-h100-80gb-hbm3"),
        ("aarch64", 6, "NVIDIA Jetson Orin Nano", ("cpu", "Orin"), "nvidia-jetson-orin-nano"),
    ],
)
def test_a_machine_has_one_folder(
    cpu: str,
    cores: int,
    jetson: str | None,
    devices: tuple[str, ...],
    slug: str,
    stage: Stage,
    frames: list[Frame],
) -> None:
    ((_, measured),) = result_of(described(case("a")), frames).measured
    about = replace(measured.machine, cpu=cpu, cores=cores, jetson=jetson)
    assert device_slug([replace(measured, machine=about, device=device) for device in devices]) == slug


# `mde bench --suite`.

SMALL = """
title = "Two of nano"
purpose = "Whether it works."
iterations = 7
warmup = 1

[[case]]
name = "as-it-ships"
frame = [60, 80]

[[case]]
name = "of-a-file"
model = "absent.onnx"

[[case]]
name = "again"
model = "nano"
threads = 1
frame = [60, 80]
"""


def test_the_verb(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="nano runs in ONNX Runtime")
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    assert run_app(["bench", "--suite", str(path), "--device", "cpu", "--json", str(tmp_path / "out")]) == 0
    told = " ".join(capfd.readouterr().out.split())
    for words in ("Two of nano", "x as-it-ships", "of-a-file not measured", "No such file", "next: Check the path"):
        assert words in told
    written = sorted((tmp_path / "out").glob("*/*.json"))
    assert [each.name for each in written] == ["small-again.json", "small-as-it-ships.json"]
    assert {len(read_result(each).samples_ms) for each in written} == {7}


def test_a_suite_of_nothing_ends_with_the_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.toml"
    path.write_text(MINIMAL, encoding="utf-8")
    assert run_app(["bench", "--suite", str(path), "--engine", "absent.onnx", "--json", str(tmp_path / "out")]) == 1
    captured = capfd.readouterr()
    assert "not measured" in captured.out
    assert "absent.onnx" in captured.err
    assert not list((tmp_path / "out").iterdir())
