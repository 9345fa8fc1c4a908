"""Stored results: read as written, compared only where alike, held to limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.backends.base import Arrays, CheckedSession
from mirrordepth_edge.bench.compare import (
    StoredResult,
    compare,
    differences,
    markdown,
    parse_gate,
    read_result,
    stored_result,
)
from mirrordepth_edge.bench.measure import Candidate, bench
from mirrordepth_edge.bench.result import RESULT_VERSION, BenchResult, pack, unpack
from mirrordepth_edge.bench.stats import summarise
from mirrordepth_edge.config import PRESETS, BenchConfig, BenchProtocol
from mirrordepth_edge.errors import GateError, InputError, OptionError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.manifest import TensorSpec
from mirrordepth_edge.predictor import DepthPredictor

MODEL = PRESETS["nano"]
HEIGHT, WIDTH = MODEL.size_hw
RAMP_MS = np.arange(1.0, 102.0)  # 1 … 101 ms: p50 is 51, p90 91, p95 96, p99 100, the mean 51

Change = Callable[[dict[str, Any]], object]


class ConstantSession(CheckedSession):
    """Two metres everywhere."""

    backend, device, precision, version = "constant", "cpu", "fp32", "1.0"
    inputs = (TensorSpec(name="image", dtype="uint8", shape=(1, HEIGHT, WIDTH, 3), layout="NHWC", range="", unit=""),)
    outputs = (TensorSpec(name="depth", dtype="float32", shape=(1, HEIGHT, WIDTH), layout="NHW", range="", unit=""),)

    def infer(self, feeds: Mapping[str, Any]) -> Arrays:
        return {"depth": np.full((1, HEIGHT, WIDTH), 2.0, np.float32)}


def measured(frame_hw: tuple[int, int] = (48, 64), protocol: BenchProtocol = "host") -> BenchResult:
    """What the harness itself makes; its times do not matter."""
    config = BenchConfig(iterations=3, warmup=0, frame_hw=frame_hw, protocol=protocol)
    frame: Frame = np.zeros((48, 64, 3), np.uint8)
    candidate = Candidate(predictor=DepthPredictor(ConstantSession(), MODEL), name="a.onnx", sha256="0" * 64)
    return bench([candidate], [frame], config)[0]


@pytest.fixture(scope="module")
def template() -> BenchResult:
    result = measured()
    return replace(result, machine=replace(result.machine, cpu="Test CPU", cores=4, jetson=None))


def with_samples(result: BenchResult, total_ms: npt.ArrayLike, **changes: Any) -> BenchResult:
    """`result` with whole frames that take `total_ms`, in stages that take an eighth, three quarters and an eighth."""
    shares = np.array([0.125, 0.75, 0.125]) if len(result.stages) == 3 else np.ones(1)
    return replace(result, samples_ms=np.outer(total_ms, shares), **changes)


@pytest.fixture
def stored(template: BenchResult) -> Callable[..., StoredResult]:
    def make(total_ms: npt.ArrayLike = RAMP_MS, source: str = "a.json", **changes: Any) -> StoredResult:
        return stored_result(json.loads(json.dumps(with_samples(template, total_ms, **changes).to_json())), source)

    return make


@pytest.fixture
def base(template: BenchResult, tmp_path: Path) -> Path:
    path = tmp_path / "base.json"
    path.write_text(json.dumps(with_samples(template, RAMP_MS).to_json()), encoding="utf-8")
    return path


def test_a_written_result_is_read(template: BenchResult, base: Path) -> None:
    result = read_result(base)
    assert result.source == str(base)
    for name in ("artefact", "artefact_sha256", "backend", "backend_version", "device", "precision", "boundary"):
        assert getattr(result, name) == getattr(template, name)
    assert result.machine == template.machine
    assert (result.config.iterations, result.config.frame_hw, result.config.protocol) == (3, (48, 64), "host")
    assert result.samples_ms.dtype == np.float64
    np.testing.assert_allclose(result.samples_ms, RAMP_MS, rtol=0, atol=3e-6)
    latency = result.latency
    found = (latency.min_ms, latency.mean_ms, latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms)
    assert found == pytest.approx((1, 51, 51, 91, 96, 100), abs=3e-6)


def drop(*keys: str) -> Change:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


def first_stage(change: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> Change:
    """Let `change` have its way with the first stage's samples."""

    def changed(data: dict[str, Any]) -> None:
        name = next(iter(data["samples_ns"]))
        data["samples_ns"][name] = pack(change(unpack(data["samples_ns"][name])))

    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(schema_version=RESULT_VERSION + 1), "schema_version is"),
        (lambda data: data.update(schema_version=str(RESULT_VERSION)), "schema_version is"),
        (drop("schema_version"), "no schema_version or no samples"),
        (drop("samples_ns"), "no schema_version or no samples"),
        (drop("backend"), "backend: Field required"),
        (drop("artefact_sha256"), "artefact_sha256: Field required"),
        (drop("config", "frame_hw"), "config.frame_hw: Field required"),
        (drop("machine", "cpu"), "machine.cpu: Field required"),
        (lambda data: data.update(device=7), "device: "),
        (lambda data: data.update(samples_ns={}), "it has: none"),
        (lambda data: data.update(samples_ns={"network": pack(np.empty(0))}), "it has: network 0"),
        (first_stage(lambda samples: samples[1:]), "the same number for every stage"),
        (first_stage(lambda samples: 0 * samples), "positive"),
        (first_stage(lambda samples: -samples), "positive"),
        (lambda data: data["samples_ns"].update(network="no base64!"), "samples_ns: "),
        (lambda data: data["samples_ns"].update(network="AAAA"), "samples_ns: "),
        (lambda data: data["samples_ns"].update(network=[1.0]), "samples_ns.network"),
    ],
)
def test_a_file_that_is_no_result_is_refused(change: Change, words: str, base: Path) -> None:
    data = json.loads(base.read_text(encoding="utf-8"))
    change(data)
    base.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_result(base)
    assert str(base) in caught.value.what
    assert words in caught.value.why
    assert "mde bench" in caught.value.cure


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"3", b'"text"', b"null"])
def test_other_files_are_refused(content: bytes, base: Path) -> None:
    base.write_bytes(content)
    with pytest.raises(InputError, match=r"base\.json is no") as caught:
        read_result(base)
    assert "mde bench" in caught.value.cure


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no result"):
        read_result(tmp_path / "none.json")


def test_a_ratio_of_constants_is_exact(stored: Callable[..., StoredResult]) -> None:
    comparison = compare(stored(np.full(50, 10.0)), stored(np.full(50, 13.1)))
    found = (comparison.ratio.ratio, comparison.ratio.low, comparison.ratio.high)
    assert found == pytest.approx((1.31, 1.31, 1.31), rel=1e-6)
    assert comparison.verdict.startswith("1.31")
    assert "times as long (95 % interval 1.31" in comparison.verdict
    assert comparison.differences == ()


def test_the_interval_holds_the_true_ratio(stored: Callable[..., StoredResult]) -> None:
    rng = np.random.default_rng(0)
    slow, quick = stored(rng.normal(13.1, 0.4, 300)), stored(rng.normal(10.0, 0.4, 300))
    up, down = compare(quick, slow), compare(slow, quick)
    assert up.ratio.low < 1.31 < up.ratio.high
    assert down.ratio.low < 1 / 1.31 < down.ratio.high
    assert up.ratio.ratio * down.ratio.ratio == pytest.approx(1)
    assert up.ratio.ratio == pytest.approx(np.median(slow.samples_ms) / np.median(quick.samples_ms))
    assert up.verdict.startswith(("1.30 times", "1.31 times", "1.32 times"))


def test_scatter_alone_is_no_difference(stored: Callable[..., StoredResult]) -> None:
    rng = np.random.default_rng(1)
    comparison = compare(stored(rng.normal(10, 1, 200)), stored(rng.normal(10, 1, 200)))
    assert comparison.ratio.low < 1 < comparison.ratio.high
    assert comparison.verdict.startswith("no significant difference: ")


def test_a_small_difference_is_not_rounded_away(stored: Callable[..., StoredResult]) -> None:
    rng = np.random.default_rng(2)
    comparison = compare(stored(rng.normal(10, 0.01, 400)), stored(rng.normal(10.04, 0.01, 400)))
    assert comparison.ratio.significant
    assert comparison.verdict.startswith(("1.003", "1.004", "1.005"))


def test_few_frames_make_no_verdict(stored: Callable[..., StoredResult]) -> None:
    comparison = compare(stored([10.0, 10.0]), stored([20.0, 20.0]))
    assert not comparison.ratio.significant
    assert comparison.verdict == "2.00 times as long, but too few frames to tell"


@pytest.mark.parametrize("kind", ["device", "cpu", "cores", "jetson", "boundary", "frame size"])
def test_different_conditions_are_not_compared(
    kind: str, template: BenchResult, stored: Callable[..., StoredResult]
) -> None:
    about = template.machine
    changes: dict[str, dict[str, Any]] = {
        "device": {"device": "Test GPU"},
        "cpu": {"machine": replace(about, cpu="Other CPU")},
        "cores": {"machine": replace(about, cores=2)},
        "jetson": {"machine": replace(about, jetson="Test Board")},
        "boundary": {"boundary": "camera to screen"},
        "frame size": {"config": measured((96, 128)).config, "boundary": measured((96, 128)).boundary},
    }
    sides = {
        "device": ("cpu", "Test GPU"),
        "cpu": ("Test CPU, 4 cores", "Other CPU, 4 cores"),
        "cores": ("Test CPU, 4 cores", "Test CPU, 2 cores"),
        "jetson": ("Test CPU, 4 cores", "Test Board, 4 cores"),
        "boundary": ("uint8 frame in host memory to metres in host memory", "camera to screen"),
        "frame size": ("64x48", "128x96"),
    }
    first, second = stored(), stored(source="b.json", **changes[kind])
    with pytest.raises(OptionError, match=r"a\.json and b\.json") as caught:
        compare(first, second)
    one, other = sides[kind]
    assert f": {one} (a.json) and {other} (b.json)" in caught.value.why
    assert "--anyway" in caught.value.cure
    comparison = compare(first, second, anyway=True)
    assert len(comparison.differences) == 1
    assert comparison.differences[0] in caught.value.why
    assert comparison.differences[0] in markdown([comparison]).replace("\\", "")


def test_the_network_alone_does_not_see_the_frame_size() -> None:
    small, large = (
        stored_result(json.loads(json.dumps(measured(size, "network").to_json())), "x.json")
        for size in ((48, 64), (96, 128))
    )
    assert small.config.frame_hw != large.config.frame_hw
    assert differences(small, large) == ()


def test_artefact_backend_and_precision_may_differ(stored: Callable[..., StoredResult]) -> None:
    other = stored(artefact="b.onnx", artefact_sha256="1" * 64, backend="other", backend_version="2", precision="fp16")
    assert compare(stored(), other).differences == ()


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("p99>33ms", 33.0),
        ("p99 > 33 ms", 33.0),
        (" mean>=20.5ms ", 20.5),
        ("p50<=500us", 0.5),
        ("max<.5s", 500.0),
        ("throughput<30", 30.0),
        ("throughput <= 30 /s", 30.0),
    ],
)
def test_limits_are_read_in_their_units(text: str, limit: float) -> None:
    gate = parse_gate(text)
    assert gate.limit == pytest.approx(limit)
    assert gate.base is None
    assert gate.condition == text


@pytest.mark.parametrize(
    ("metric", "value"),
    [("min", 1), ("mean", 51), ("p50", 51), ("p90", 91), ("p95", 96), ("p99", 100), ("max", 101)],
)
def test_each_metric_is_its_figure(metric: str, value: float) -> None:
    latency = summarise(RAMP_MS)
    assert parse_gate(f"{metric}>{value}ms").check(latency) is None
    assert parse_gate(f"{metric}<{value}ms").check(latency) is None
    equal = parse_gate(f"{metric}>={value}ms").check(latency)
    assert equal is not None
    assert f"{metric} is {value} ms, exactly at the limit of {value} ms" in equal
    assert parse_gate(f"{metric}<={value}ms").check(latency) is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("p99>80ms", "p99 is 100 ms, 20 ms (25.00%) over the limit of 80 ms"),
        ("p99>0.08s", "p99 is 100 ms, 20 ms (25.00%) over the limit of 80 ms"),
        ("min<1.25ms", "min is 1 ms, 0.25 ms (20.00%) under the limit of 1.25 ms"),
        ("throughput<25", "throughput is 19.6078 frames/s, 5.39 frames/s (21.57%) under the limit of 25 frames/s"),
        ("throughput>=10/s", "throughput is 19.6078 frames/s, 9.61 frames/s (96.08%) over the limit of 10 frames/s"),
    ],
)
def test_a_failure_says_by_how_much(text: str, words: str) -> None:
    failure = parse_gate(text).check(summarise(RAMP_MS))
    assert failure is not None
    assert words in failure
    assert text in failure


def test_limits_come_from_stored_results(base: Path) -> None:
    same, slower, quicker = (summarise(RAMP_MS * factor) for factor in (1.0, 1.1, 0.9))
    gate = parse_gate(f"p50>1.05*{base}")
    assert gate.limit == pytest.approx(51 * 1.05)
    assert gate.base is not None
    assert gate.check(same) is None
    failure = gate.check(slower)  # 56.1 over 53.55 ms
    assert failure is not None
    assert "p50 is 56.1 ms, 2.55 ms (4.76%) over the limit of 53.55 ms" in failure
    assert str(base) in failure
    assert parse_gate(f"p90 > {base}").limit == pytest.approx(91)
    assert parse_gate(f"throughput < 0.5 * {base}").limit == pytest.approx(1000 / 51 / 2)
    assert parse_gate(f"throughput<{base}").check(quicker) is None
    assert parse_gate(f"throughput<{base}").check(slower) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "p99",
        "p99>",
        ">33ms",
        "p99>33",
        "p99>ms",
        "p99>33 frames",
        "p99>33ms ms",
        "p99=>33ms",
        "p99==33ms",
        "p99>>33ms",
        "p99>1.2.3ms",
        "p99>-3ms",
        "p99>0ms",
        "p99>infms",
        "p99>nanms",
        "p99>1e3ms",
        "p98>33ms",
        "p99_ms>33ms",
        "P99>33ms",
        "variation>0.1",
        "throughput<30ms",
        "throughput<0",
        "p99>33ms, p50>2ms",
        "p50>fast*base.json",
        "p50>0*base.json",
        "p50>*base.json",
        "p50>1.05*base",
    ],
)
def test_other_conditions_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(OptionError, match="not a valid --fail-if condition") as caught:
        parse_gate(text)
    assert "p99>33ms" in caught.value.cure
    assert repr(text) in caught.value.what


def test_a_missing_base_is_refused_early(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no result"):
        parse_gate(f"p50>1.05*{tmp_path / 'none.json'}")


def test_a_failed_gate_has_its_own_exit_code() -> None:
    assert GateError.exit_code == 3


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_a_table_of_results(stored: Callable[..., StoredResult]) -> None:
    text = markdown([stored(), stored(RAMP_MS * 2, artefact="a|b_c.plan", device="Test GPU", precision="fp16")])
    head, rule, first, second = text.splitlines()
    assert len(cells(head)) == len(cells(rule)) == len(cells(first)) == 9
    assert set(rule) <= set("|-: ")
    assert cells(first)[1:5] == ["a.onnx", "constant 1.0", "Test CPU, 4 cores", "FP32"]
    assert cells(first)[5:] == ["51.00", "91.00", "100.00", "19.6"]
    assert cells(second)[0:5] == ["2", r"a\|b\_c.plan", "constant 1.0", "Test GPU", "FP16"]
    assert cells(second)[5:] == ["102.00", "182.00", "200.00", "9.8"]


def test_a_table_of_comparisons_names_rows(stored: Callable[..., StoredResult]) -> None:
    first, second, third = (stored(np.full(20, time)) for time in (10.0, 20.0, 5.0))
    comparisons = [compare(first, second), compare(first, third)]
    results, ratios = markdown(comparisons).split("\n\n")
    assert [cells(line)[0] for line in results.splitlines()[2:]] == ["1", "2", "3"]
    assert [cells(line) for line in ratios.splitlines()[2:]] == [
        ["2 against 1", comparisons[0].verdict],
        ["3 against 1", comparisons[1].verdict],
    ]
    assert comparisons[1].verdict.startswith("0.5")
