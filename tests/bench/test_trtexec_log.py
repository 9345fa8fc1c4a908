"""trtexec's logs and times: figures against what the log says, and against raw samples by trtexec's own rules."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.artefact import NANO_ONNX
from mirrordepth_edge.bench.compare import compare, read_result, stored_result
from mirrordepth_edge.bench.trtexec_log import (
    NOT_STATED,
    Spread,
    TrtexecSummary,
    parse_log,
    read_log,
    read_times,
    result_of,
)
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.machine.device import Gpu, machine
from mirrordepth_edge.support.files import sha256_of

LOGS = Path(__file__).parents[1] / "fixtures" / "trtexec"
PAIRS = ("10.3-copies", "11.1-default")
NANO = NANO_ONNX["fp16"]
GPU = Gpu(name="made-up GPU", compute_capability="8.7", memory_mib=7620, integrated=True, cuda="12.6")


def summary_of(name: str) -> TrtexecSummary:
    return read_log(LOGS / f"{name}.log")


def changed(name: str, old: str, new: str) -> str:
    text = (LOGS / f"{name}.log").read_text(encoding="utf-8")
    assert old in text
    return text.replace(old, new)


def test_a_whole_log() -> None:
    summary = summary_of("10.9-unstable")
    assert (summary.version, summary.device, summary.compute_capability) == ("10.9.0", "NVIDIA GeForce RTX 3070", "8.6")
    assert (summary.model, summary.inference_streams) == ("model.onnx", 1)
    assert (summary.cuda_graph, summary.passed) == (False, True)
    assert summary.command == "trtexec --onnx=model.onnx --saveEngine=model.plan"
    assert (summary.warmup, summary.queries, summary.seconds, summary.throughput_hz) == (2, 29, 3.34555, 8.66824)
    assert summary.latency == Spread(
        min_ms=110.946,
        mean_ms=112.938,
        median_ms=112.567,
        max_ms=115.703,
        percentiles_ms={"90": 114.427, "95": 115.415, "99": 115.703},
    )
    medians = [each.median_ms for each in (summary.host_to_device, summary.compute, summary.device_to_host)]
    assert medians == [0.769043, 111.208, 0.609924]
    assert summary.enqueue.max_ms == 0.953369
    assert summary.warnings == (
        "GPU compute time is unstable, with coefficient of variance = 1.08662%. If not already in use, locking GPU "
        "clock frequency or adding --useSpinWait may improve the stability.",
    )


def test_a_log_without_its_head() -> None:
    summary = summary_of("10.7-cuda-graph")
    assert (summary.version, summary.cuda_graph, summary.queries) == ("10.7.0", True, 101)
    assert (summary.device, summary.command, summary.model, summary.passed) == (None, None, None, False)
    assert summary.device_to_host.min_ms == 0.00390625
    assert summary.warnings == ()


def test_tensorrt_8() -> None:
    summary = summary_of("8.4-enqueue-bound")
    assert summary.version == "8.4.1"  # by its number alone, 8401
    assert summary.latency.percentiles_ms == {"99": 7.92065}
    assert (summary.queries, summary.warmup, summary.cuda_graph) == (None, None, None)
    assert summary.warnings[0].startswith("Throughput may be bound by Enqueue Time")
    assert summary.warnings[0].endswith("may increase the throughput.")


@pytest.mark.parametrize(
    ("code", "version"), [("8603", "8.6.3"), ("8003", "8.0.3"), ("100001", "10.0.1"), ("101401", "10.14.1")]
)
def test_versions_by_number(code: str, version: str) -> None:
    assert parse_log(changed("8.4-enqueue-bound", "v8401", f"v{code}"), "a log").version == version


@pytest.mark.parametrize(
    ("name", "transfers", "protocol"),
    [
        ("10.3-copies", True, "trtexec-10"),
        ("11.1-default", False, "trtexec-11"),
        ("10.7-cuda-graph", True, "trtexec-10"),
    ],
)
def test_copies_are_recognised_by_the_figures(name: str, transfers: bool, protocol: str) -> None:
    summary = summary_of(name)
    assert (summary.transfers, summary.protocol) == (transfers, protocol)
    assert summary.boundary.startswith("network input" if transfers else "compute on the GPU")


def test_a_graph_that_could_not_be_captured_was_not_replayed() -> None:
    failed = "[W] CUDA graph capture failed. The inference will be launched without using CUDA graph."
    summary = parse_log(changed("11.1-default", "[I] Successfully captured", f"{failed}\n[I] Once captured"), "a log")
    assert summary.cuda_graph is False


def statistics(samples: npt.NDArray[np.float64]) -> dict[str, float]:
    """As sampleReporting.cpp has them: getPerformanceResult, findMedian, findPercentile."""
    ordered = sorted(samples)
    count, middle = len(ordered), len(ordered) // 2
    median = ordered[middle] if count % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    found = {"min_ms": ordered[0], "mean_ms": sum(ordered) / count, "median_ms": median, "max_ms": ordered[-1]}
    for percentage in (90, 95, 99):
        # In single precision, in which 1 - 0.9 of 60 excludes 6 samples or 5.
        left_out = int((np.float32(1) - np.float32(percentage) / np.float32(100)) * np.float32(count))
        found[str(percentage)] = ordered[max(count - 1 - left_out, 0)]
    return found


@pytest.mark.parametrize("name", PAIRS)
def test_log_and_times_tell_the_same(name: str) -> None:
    summary, times = summary_of(name), read_times(LOGS / f"{name}.times.json")
    fields = {"latency": "latencyMs", "host_to_device": "h2dMs", "compute": "computeMs", "device_to_host": "d2hMs"}
    for field, key in fields.items():
        spread = asdict(getattr(summary, field))
        told = spread.pop("percentiles_ms") | spread
        assert told == pytest.approx(statistics(times[key]), rel=1e-5)
    assert summary.queries == len(times["latencyMs"])
    assert summary.seconds is not None
    assert summary.throughput_hz == pytest.approx(len(times["latencyMs"]) / summary.seconds, rel=1e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_a_result_that_can_be_compared(name: str, tmp_path: Path) -> None:
    summary, times = summary_of(name), read_times(LOGS / f"{name}.times.json")
    result = result_of(summary, times, NANO)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result.to_json() | {"trtexec": summary.to_json()}), encoding="utf-8")
    stored = read_result(path)
    np.testing.assert_allclose(stored.samples_ms, times["latencyMs"], atol=1e-6)  # whole nanoseconds
    assert (stored.artefact, stored.artefact_sha256) == (NANO.name, sha256_of(NANO))
    assert (stored.backend, stored.backend_version, stored.precision) == ("trtexec", summary.version, "fp16")
    assert stored.boundary == summary.boundary
    assert stored.config.protocol == summary.protocol
    assert stored.latency.p50_ms == pytest.approx(summary.latency.median_ms, rel=1e-5)
    assert result.warmup == 94
    assert result.telemetry.remarks() == []
    told = {"host to device", "compute", "device to host"} if summary.transfers else {"compute"}
    assert set(result.device_stages) == told
    assert result.device_stages["compute"].p50_ms == pytest.approx(summary.compute.median_ms, rel=1e-5)


def test_runs_that_count_otherwise_or_elsewhere_are_not_compared() -> None:
    stored = {}
    for name in PAIRS:
        result = result_of(summary_of(name), read_times(LOGS / f"{name}.times.json"), NANO)
        stored[name] = stored_result(result.to_json(), name)
    with pytest.raises(OptionError, match="measured under different conditions") as caught:
        compare(stored[PAIRS[0]], stored[PAIRS[1]])
    assert "boundary" in caught.value.why
    with_graph, without = stored[PAIRS[1]], stored[PAIRS[1]]
    assert compare(with_graph, without).ratio.ratio == 1
    ours = replace(stored[PAIRS[1]], machine=machine())
    with pytest.raises(OptionError) as caught:
        compare(ours, stored[PAIRS[1]])
    assert f"{NOT_STATED}, 0 cores" in caught.value.why


def test_a_machine_is_believed_if_it_has_the_gpu() -> None:
    summary, times = summary_of("10.3-copies"), read_times(LOGS / "10.3-copies.times.json")
    here = replace(machine(), gpus=(GPU,))
    assert result_of(summary, times, NANO, here).machine == here
    with pytest.raises(OptionError, match="not measured here") as caught:
        result_of(summary, times, NANO, replace(here, gpus=(replace(GPU, name="another"),)))
    assert caught.value.why == "Its GPU is made-up GPU, and this machine has another."


def test_times_of_another_run_are_refused() -> None:
    summary, times = summary_of("10.3-copies"), read_times(LOGS / "10.3-copies.times.json")
    for other in (
        {name: own[:-1] for name, own in times.items()},
        {name: own * 1.01 for name, own in times.items()},
    ):
        with pytest.raises(InputError, match="not those of the run"):
            result_of(summary, other, NANO)


@pytest.mark.parametrize("line", ["Inference Streams: 2", "Streams: 2"])  # as since TensorRT 8.5, and before
def test_queries_side_by_side_have_no_latency_of_their_own(line: str) -> None:
    summary = parse_log(changed("10.3-copies", "Inference Streams: 1", line), "a log")
    with pytest.raises(OptionError, match="no latencies of single queries"):
        result_of(summary, read_times(LOGS / "10.3-copies.times.json"), NANO)


@pytest.mark.parametrize(
    ("gone", "why"), [("Selected Device: ", "It does not name the GPU."), ("Warmup completed", "It does not state the")]
)
def test_a_result_needs_the_whole_log(gone: str, why: str) -> None:
    summary = parse_log(changed("10.3-copies", gone, "cut"), "a log")
    with pytest.raises(InputError, match="is incomplete") as caught:
        result_of(summary, read_times(LOGS / "10.3-copies.times.json"), NANO)
    assert caught.value.why.startswith(why)


def test_a_run_that_failed_is_quoted() -> None:
    with pytest.raises(InputError, match="trtexec failed") as caught:
        summary_of("10.3-failed")
    assert caught.value.why.splitlines() == ["Unknown option: --workspace 2048", "Unknown option: --explicitBatch "]


@pytest.mark.parametrize(
    ("old", "new", "what", "why"),
    [
        ("=== Performance summary ===", "", "has no measurement", "truncated"),
        ("GPU Compute Time: min", "", "is incomplete", "lacks GPU Compute Time"),
        ("Throughput: ", "", "is incomplete", "lacks throughput"),
        (", median = 112.567 ms, ", "", "cannot be read", "median"),
        ("min = 110.946 ms", "min = inf ms", "cannot be read", "inf"),
        ("min = 110.946 ms", "min = 110.9.46 ms", "cannot be read", "110.9.46"),
        ("=== Performance summary ===", "=== Performance summary ===\n=== Performance summary ===", "several", "2"),
    ],
)
def test_logs_that_are_not_one_whole_measurement(old: str, new: str, what: str, why: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        parse_log(changed("10.9-unstable", old, new), "a log")
    assert why in caught.value.why


def test_an_engine_that_was_only_built() -> None:
    text = "[07/01/2026-12:00:00] [I] Skipped inference phase since --skipInference is added.\n"
    with pytest.raises(InputError, match="has no measurement") as caught:
        parse_log(text, "a log")
    assert "only builds" in caught.value.why
    assert "--loadEngine" in caught.value.cure


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8"])
def test_logs_as_windows_writes_them(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "trtexec.log"
    text = (LOGS / "10.9-unstable.log").read_text(encoding="utf-8").replace("\n", "\r\n")
    path.write_bytes(text.encode(encoding))
    assert replace(read_log(path), source="") == replace(summary_of("10.9-unstable"), source="")


def test_files_that_are_no_logs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no log"):
        read_log(tmp_path / "absent.log")
    (tmp_path / "binary.log").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="has no measurement"):
        read_log(tmp_path / "binary.log")


@pytest.mark.parametrize("text", ["[]", "{}", '[{"h2dMs": 0, "computeMs": 0, "d2hMs": 0, "latencyMs": 0}]', "nan"])
def test_files_that_are_no_times(text: str, tmp_path: Path) -> None:
    (tmp_path / "times.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="is not a file of trtexec"):
        read_times(tmp_path / "times.json")
