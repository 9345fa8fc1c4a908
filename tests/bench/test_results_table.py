"""The table of published results: nothing in it that is not in the stored files, and the repository's is current."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.backends.base import Arrays, CheckedSession
from mirrordepth_edge.bench.measure import Candidate, bench
from mirrordepth_edge.bench.result import BenchResult
from mirrordepth_edge.bench.results_table import COLUMNS, HEAD, NOTHING, read_published, results_page
from mirrordepth_edge.bench.suite import Place
from mirrordepth_edge.config import PRESETS, BenchConfig
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.manifest import TensorSpec
from mirrordepth_edge.predictor import DepthPredictor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODEL = PRESETS["nano"]
HEIGHT, WIDTH = MODEL.size_hw
TODAY, BEFORE = "2025-03-02T10:00:00+00:00", "2025-02-01T10:00:00+00:00"
RAMP_MS = np.arange(1.0, 102.0)  # 1 … 101 ms: p50 is 51, p99 100, the mean 51


class ConstantSession(CheckedSession):
    """Two metres everywhere."""

    backend, device, precision, version = "constant", "cpu", "fp32", "1.0"
    inputs = (TensorSpec(name="image", dtype="uint8", shape=(1, HEIGHT, WIDTH, 3), layout="NHWC", range="", unit=""),)
    outputs = (TensorSpec(name="depth", dtype="float32", shape=(1, HEIGHT, WIDTH), layout="NHW", range="", unit=""),)

    def infer(self, feeds: Mapping[str, Any]) -> Arrays:
        return {"depth": np.full((1, HEIGHT, WIDTH), 2.0, np.float32)}


@pytest.fixture(scope="module")
def template() -> BenchResult:
    """What the harness itself makes; its times do not matter."""
    frame: Frame = np.zeros((48, 64, 3), np.uint8)
    candidate = Candidate(predictor=DepthPredictor(ConstantSession(), MODEL), name="a|b.onnx", sha256="12ab34cd" * 8)
    config = BenchConfig(iterations=3, warmup=0, frame_hw=(48, 64), protocol="network")
    (result,) = bench([candidate], [frame], config)
    quiet = replace(result.telemetry, cpu_others=result.telemetry.gpu, governor="performance", own_ms=0.0)
    about = replace(result.machine, cpu="Test CPU", cores=4, jetson=None)
    return replace(result, machine=about, telemetry=quiet)


class Store:
    """A folder of results as `store` writes them."""

    def __init__(self, folder: Path, template: BenchResult) -> None:
        self.folder, self.template = folder, template

    def add(
        self,
        suite: str,
        case: str,
        samples_ms: npt.ArrayLike,
        machine: str = "board",
        place: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        own = {"number": 0, "measured": TODAY, "batch": 1, "count": None, "unit": None, **(place or {})}
        result = replace(self.template, samples_ms=np.asarray(samples_ms, np.float64)[:, None], **changes)
        plain = result.to_json() | {"suite": asdict(Place(suite=suite, case=case, **own)), "mirrordepth_edge": "9.8.7"}
        plain["telemetry"]["remarks"] = []
        path = self.folder / machine / f"{suite}-{case}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain), encoding="utf-8")
        return path

    def rows(self) -> list[list[str]]:
        """The cells of all rows of all tables."""
        lines = [line for line in results_page(self.folder).splitlines() if line.startswith("| ")]
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        return [row for row in cells if row[0] not in ("case", "---")]


@pytest.fixture
def results(tmp_path: Path, template: BenchResult) -> Store:
    return Store(tmp_path, template)


def test_a_row_is_what_was_measured(results: Store) -> None:
    results.add("quick", "one", RAMP_MS)
    (row,) = results.rows()
    cells = dict(zip(COLUMNS, row, strict=True))
    p50 = re.fullmatch(r"51\.00 \((\d+\.\d\d) to (\d+\.\d\d)\)", cells.pop("p50 ms"))
    assert p50 is not None
    assert 1 < float(p50[1]) < 51 < float(p50[2]) < 101
    assert cells == {
        "case": "one",
        "device": "cpu",
        "precision": "FP32",
        "backend": "constant 1.0",
        "artefact": r"a\|b.onnx 12ab34cd",
        "measured": "2025-03-02",
        "version": "9.8.7",
        "p99 ms": "100.00",
        "frames/s": "19.6",  # 1000 / 51
        "ratio": "1",
    }
    page = results_page(results.folder)
    assert page.startswith(HEAD)
    assert "\n## board\n\nTest CPU, 4 cores\n\n### quick\n" in page
    assert "Timed section: network input in host memory to network output in host memory." in page


def test_ratios_need_interleaved_measurements(results: Store) -> None:
    results.add("quick", "first", RAMP_MS)
    results.add("quick", "double", 2 * RAMP_MS, place={"number": 1})
    results.add("quick", "earlier", RAMP_MS, place={"number": 2, "measured": BEFORE})
    results.add("quick", "fewer", RAMP_MS[:50], place={"number": 3})
    other = BenchConfig(iterations=3, warmup=0, frame_hw=(96, 128), protocol="network")
    results.add("quick", "larger", RAMP_MS, place={"number": 4}, config=other)
    assert [(row[0], row[-1]) for row in results.rows()] == [
        ("first", "1"),
        ("double", "2.00 (2.00 to 2.00)"),
        ("earlier", "separate run"),
        ("fewer", "separate run"),
        ("larger", "separate run"),
    ]


def test_a_batch_counts_all_its_frames(results: Store) -> None:
    results.add("batch", "b4", np.full(20, 80.0), place={"batch": 4})
    assert results.rows()[0][-2] == "50.0"


def test_scaling_needs_interleaved_measurements(results: Store) -> None:
    for number, count in enumerate((10, 20, 40, 80)):
        samples_ms = np.full(20, 0.5 + 0.25 * count)
        place = {"number": number, "count": count, "unit": "token"}
        results.add("resolutions", f"n{count}", samples_ms, place=place)
    page = results_page(results.folder)
    assert "\nScaling: 0.5 ms (0.5 to 0.5) + 0.25 ms (0.25 to 0.25) per token: " in page
    results.add("resolutions", "n80", samples_ms, place={"number": 3, "count": 80, "unit": "token", "measured": BEFORE})
    page = results_page(results.folder)
    assert "\nScaling: A scaling model cannot be fitted to 3 sizes. " in page
    assert ".." not in page


def test_the_order_is_machine_suite_and_place(results: Store) -> None:
    for machine, suite, case, number in (
        ("b", "quick", "x", 0),
        ("a", "quick", "second", 10),
        ("a", "quick", "z-first", 9),
        ("a", "edge", "y", 0),
    ):
        results.add(suite, case, RAMP_MS, machine=machine, place={"number": number})
    page = results_page(results.folder)
    assert re.findall(r"^##+ (.*)$", page, re.MULTILINE) == ["a", "edge", "quick", "b", "quick"]
    assert [row[0] for row in results.rows()] == ["y", "z-first", "second", "x"]


def test_warnings_are_listed(results: Store) -> None:
    results.add("quick", "steady", np.full(40, 10.0))
    assert "Warnings" not in results_page(results.folder)
    path = results.add("quick", "shaky", np.tile([10.0, 30.0], 20))
    data = json.loads(path.read_text(encoding="utf-8"))
    data["telemetry"]["remarks"] = ["the CPU governor is 'powersave'"]
    path.write_text(json.dumps(data), encoding="utf-8")
    warnings = results_page(results.folder).split("Warnings:")[1]
    assert "- shaky: Unsteady" in warnings
    assert "- the CPU governor is 'powersave'\n" in warnings
    assert "- steady" not in warnings


def test_other_measurements_are_left_out(results: Store) -> None:
    path = results.add("quick", "one", RAMP_MS)
    data = json.loads(path.read_text(encoding="utf-8"))
    del data["suite"]
    (path.parent / "by-hand.json").write_text(json.dumps(data), encoding="utf-8")
    (path.parent / "list.json").write_text("[]", encoding="utf-8")
    (results.folder / "notes.json").write_text("{", encoding="utf-8")
    assert [published.place.case for published in read_published(results.folder)] == ["one"]


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not valid JSON"), ('{"suite": {}}', "not valid"), ('{"suite": 3}', "not valid")],
)
def test_a_damaged_result_is_refused(content: str, words: str, results: Store) -> None:
    path = results.add("quick", "one", RAMP_MS)
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=words) as caught:
        results_page(results.folder)
    assert str(path) in caught.value.what


def test_a_result_without_samples_is_refused(results: Store) -> None:
    path = results.add("quick", "one", RAMP_MS)
    data = json.loads(path.read_text(encoding="utf-8"))
    del data["samples_ns"]
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InputError, match=r"one\.json"):
        results_page(results.folder)


def test_an_empty_folder(tmp_path: Path) -> None:
    assert results_page(tmp_path) == HEAD + NOTHING


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks/ is in the repository only")
def test_the_repositorys_table_is_current() -> None:
    written = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    assert written == results_page(BENCHMARKS / "results"), "python benchmarks/make_results.py"
