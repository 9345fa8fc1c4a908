"""Read measurements of TensorRT's trtexec: the summary that it prints, and the times of `--exportTimes`.

The formats are those of samples/common/sampleReporting.cpp in github.com/NVIDIA/TensorRT (printPerformanceReport and
exportJSONTrace; the same from v8.6.1 to v11.1, except for the advice in warnings). A summary has no raw samples. The
exported times are raw and become a `BenchResult`.

Without copies, the latency of a query is its compute time. The figures show whether there were copies, the version does
not: trtexec copies by default up to TensorRT 10, not since 11, and options change both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.bench.measure import BOUNDARIES
from mirrordepth_edge.bench.result import BenchResult
from mirrordepth_edge.bench.stats import latency_warnings, summarise
from mirrordepth_edge.config import BenchConfig, BenchProtocol
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.machine.device import Machine
from mirrordepth_edge.machine.telemetry import Telemetry
from mirrordepth_edge.machine.unavailable import Unavailable
from mirrordepth_edge.manifest import read_manifest
from mirrordepth_edge.support.files import existing_file

T = TypeVar("T")
Times = npt.NDArray[np.float64]

PARTS = ("h2dMs", "computeMs", "d2hMs")
SUMMARY_VERSION = 1
NOT_STATED = "not stated by trtexec"
AGAIN = "trtexec --loadEngine=model.plan --exportTimes=times.json > trtexec.log 2>&1"

# Names in printEpilog.
TIMES = {
    "Latency": "latency",
    "H2D Latency": "host_to_device",
    "GPU Compute Time": "compute",
    "D2H Latency": "device_to_host",
    "Enqueue Time": "enqueue",
}
_STATUS = re.compile(r"&&&& (RUNNING|PASSED|FAILED) \S+(?: \[TensorRT\S* v(\d{4,6})\])?(?: \[b\d+\])?(?: # (.*))?")
_LEVEL = re.compile(r"\[([VIWEF])\] ?(.*)")
_TIME = re.compile(rf"({'|'.join(TIMES)}): (min = .*)")
_FIGURE = re.compile(r"([a-z]+)(?:\(([\d.]+)%\))? = (\S+) ms")
_FACTS = {
    name: re.compile(pattern)
    for name, pattern in {
        "summary": r"(=== Performance summary ===)",
        "skipped": r"(Skipped inference phase.*)",
        "version": r"TensorRT version: ([\d.]+)",
        "device": r"Selected Device: (.+)",
        "compute_capability": r"Compute Capability: ([\d.]+)",
        "streams": r"(?:Inference )?Streams: (\d+)",
        "cuda_graph": r"CUDA Graph: (\w+)",
        "capture_failed": r"(CUDA graph capture failed.*)",
        "throughput": r"Throughput: (\S+) qps",
        "warmup": r"Warmup completed (\d+) queries",
        "queries": r"Timing trace has (\d+) queries",
        "seconds": r"Total Host Walltime: (\S+) s",
    }.items()
}
SAME = 1e-3
"""Largest relative difference of the median of the times from the log's, which has six digits."""
QUOTED = 4
"""How many of the last errors of a failed run are quoted."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One of trtexec's times over all queries, in milliseconds."""

    min_ms: float
    mean_ms: float
    median_ms: float
    max_ms: float
    percentiles_ms: dict[str, float]
    """By percentage, such as `99`: trtexec takes the next sample, and does not interpolate."""


@dataclass(frozen=True, kw_only=True)
class TrtexecSummary:
    """A run of trtexec; None where its log does not state a value."""

    source: str
    """The log's name, for messages."""
    version: str | None
    """Of TensorRT, such as `10.3.0`."""
    command: str | None
    model: str | None
    """The engine or, where trtexec built one first, the ONNX file, as the command names it."""
    device: str | None
    compute_capability: str | None
    inference_streams: int | None
    cuda_graph: bool | None
    warmup: int | None
    """Queries before the timed ones."""
    queries: int | None
    seconds: float | None
    """From the first timed query's start to the last one's end, on the host's clock."""
    throughput_hz: float
    """Queries per second; several may be in flight."""
    latency: Spread
    """Sum of the next three for each query, on the GPU's clock."""
    host_to_device: Spread
    compute: Spread
    device_to_host: Spread
    enqueue: Spread
    """Host time to enqueue a query; not part of the latency."""
    warnings: tuple[str, ...]
    """Warnings of trtexec about its own figures, verbatim."""
    passed: bool
    """False if the log ends before trtexec reports success."""

    @property
    def transfers(self) -> bool:
        """Whether queries copied their tensors between host and device."""
        return self.host_to_device.max_ms > 0 or self.device_to_host.max_ms > 0

    @property
    def protocol(self) -> BenchProtocol:
        """The protocol of `mde bench` with the same timed section."""
        return "trtexec-10" if self.transfers else "trtexec-11"

    @property
    def boundary(self) -> str:
        """The timed section of `latency`, as `mde bench` describes it."""
        return BOUNDARIES[self.protocol]

    def to_json(self) -> dict[str, Any]:
        """Plain values; milliseconds unless a name says otherwise."""
        derived = {"protocol": self.protocol, "boundary": self.boundary}
        return {"schema_version": SUMMARY_VERSION, "kind": "trtexec summary", **derived, **asdict(self)}


def read_log(path: Path) -> TrtexecSummary:
    """Read a log of trtexec.

    Raises:
        InputError: the file is missing, trtexec failed or did not measure, or the log has several runs or is
            incomplete.
    """
    content = existing_file(path, "log").read_bytes()
    # PowerShell's > writes UTF-16.
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    return parse_log(content.decode(encoding, errors="replace"), str(path))


def parse_log(text: str, source: str) -> TrtexecSummary:
    """Parse what trtexec printed.

    Args:
        source: the name of the log in messages.

    Raises:
        InputError: as `read_log`.
    """
    log = _Log.scan(text)
    _refuse_failed(source, log)
    _refuse_other(source, log.facts)
    try:
        return _summary(log, source)
    except (ValueError, KeyError) as error:
        why = f"A figure of its summary is cut off or not a number ({error})."
        raise InputError(f"{source} cannot be read.", why, f"Measure again: {AGAIN}") from error


@dataclass(frozen=True, kw_only=True)
class _Log:
    """The lines of a log that matter, by what they state."""

    statuses: list[tuple[str, str | None, str | None]]
    """RUNNING, PASSED or FAILED, with version code and command if the line has them."""
    facts: dict[str, list[str]]
    """Values by the names in `_FACTS` and `TIMES`."""
    warnings: list[str]
    errors: list[str]

    @classmethod
    def scan(cls, text: str) -> _Log:
        log = cls(statuses=[], facts={name: [] for name in (*_FACTS, *TIMES)}, warnings=[], errors=[])
        for line in text.splitlines():
            if status := _STATUS.search(line):
                log.statuses.append((status[1], status[2], status[3]))
            prefixed = _LEVEL.search(line)
            level, message = (prefixed[1], prefixed[2]) if prefixed else ("I", line.strip())
            if level == "E":
                log.errors.append(message)
            elif level == "W":
                log._add_warning(message)
            log._add_facts(message)
        return log

    def _add_warning(self, message: str) -> None:
        if message.startswith("* "):
            self.warnings.append(message.removeprefix("* "))
        elif message.startswith("  ") and self.warnings:  # the advice that belongs to the warning above
            self.warnings[-1] += f" {message.strip()}"

    def _add_facts(self, message: str) -> None:
        for name, pattern in _FACTS.items():
            if match := pattern.match(message):
                self.facts[name].append(match[1])
        if match := _TIME.match(message):
            self.facts[match[1]].append(match[2])

    def first(self, name: str, convert: Callable[[str], T]) -> T | None:
        """The first value of a fact, or None."""
        return convert(self.facts[name][0]) if self.facts[name] else None


def _summary(log: _Log, source: str) -> TrtexecSummary:
    """
    Raises:
        KeyError, ValueError: a figure is missing or malformed.
    """
    command = next((command for _, _, command in log.statuses if command), None)
    version_of_status = next((_version(code) for _, code, _ in log.statuses if code), None)
    captured = not log.facts["capture_failed"]
    return TrtexecSummary(
        source=source,
        version=log.first("version", str) or version_of_status,
        command=command,
        model=_model_of(command),
        device=log.first("device", str),
        compute_capability=log.first("compute_capability", str),
        inference_streams=log.first("streams", int),
        cuda_graph=log.first("cuda_graph", lambda word: word == "Enabled" and captured),
        warmup=log.first("warmup", int),
        queries=log.first("queries", int),
        seconds=log.first("seconds", _number),
        throughput_hz=_number(log.facts["throughput"][0]),
        **{field: _spread(log.facts[name][0]) for name, field in TIMES.items()},
        warnings=tuple(log.warnings),
        passed=any(status == "PASSED" for status, _, _ in log.statuses),
    )


def _refuse_failed(source: str, log: _Log) -> None:
    if any(status == "FAILED" for status, _, _ in log.statuses):
        why = "\n".join(log.errors[-QUOTED:]) or "It gave no reason."
        cure = "Fix the error and run trtexec again. The log has more above these lines."
        raise InputError(f"trtexec failed; {source} has no measurement.", why, cure)


def _refuse_other(source: str, facts: Mapping[str, list[str]]) -> None:
    """Refuse a log without exactly one complete summary."""
    summaries = len(facts["summary"])
    if summaries > 1:
        why = f"It has {summaries} performance summaries."
        raise InputError(f"{source} is the log of several runs.", why, "Pass the log of one run; tee -a appends runs.")
    if not summaries and facts["skipped"]:
        why = "With --skipInference, trtexec only builds."
        raise InputError(f"{source} has no measurement.", why, f"Measure the engine: {AGAIN}")
    if not summaries:
        why = "It has no performance summary. It is truncated, or not a log of trtexec of TensorRT 8 or later."
        raise InputError(f"{source} has no measurement.", why, f"Measure again: {AGAIN}")
    if missing := [name for name in ("throughput", *TIMES) if not facts[name]]:
        why = f"Its performance summary lacks {', '.join(missing)}."
        raise InputError(f"{source} is incomplete.", why, f"Pass all that trtexec printed, or measure again: {AGAIN}")


def _spread(text: str) -> Spread:
    figures = {(name, rank): _number(value) for name, rank, value in _FIGURE.findall(text)}
    plain = {f"{name}_ms": figures[name, ""] for name in ("min", "mean", "median", "max")}
    percentiles_ms = {rank: value for (name, rank), value in figures.items() if name == "percentile"}
    return Spread(**plain, percentiles_ms=percentiles_ms)


def _number(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError(text)
    return number


def _version(code: str) -> str:
    """NV_TENSORRT_VERSION: 8603 is 8.6.3 and, since TensorRT 10, 101401 is 10.14.1."""
    number = int(code)
    major, rest = divmod(number, 10000 if number >= 100000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


def _model_of(command: str | None) -> str | None:
    for option in ("loadEngine", "onnx"):
        if named := re.search(rf"--{option}=(\S+)", command or ""):
            return named[1]
    return None


def read_times(path: Path) -> dict[str, Times]:
    """Read what `--exportTimes` wrote: a list of objects, one per query, without those of the warm-up.

    Returns:
        Milliseconds of each of `PARTS` and of `latencyMs`, their sum; without copies that is computeMs. Resolution
        falls during a run: they are differences of single-precision times since its start, 2 us after 16 s.

    Raises:
        InputError: the file has another format.
    """
    what = f"{path} is not a file of trtexec --exportTimes."
    try:
        queries = json.loads(existing_file(path, "file of trtexec --exportTimes").read_text(encoding="utf-8"))
        times = {name: np.array([query[name] for query in queries], np.float64) for name in (*PARTS, "latencyMs")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(what, repr(error), "Run trtexec again.") from error
    if not queries:
        raise InputError(what, "It has no queries.", "Run trtexec for longer.")
    if not all(np.isfinite(own).all() for own in times.values()) or (times["latencyMs"] <= 0).any():
        raise InputError(
            what,
            "Some times are not positive numbers.",
            "Run trtexec again.",
        )
    return times


def result_of(
    summary: TrtexecSummary, times: Mapping[str, Times], model: Path, machine: Machine | None = None
) -> BenchResult:
    """Convert trtexec's queries and the file that it ran to a result for `mde bench compare`.

    Args:
        times: of the same run, from `read_times`.
        model: the engine, or the ONNX file that trtexec built it from, with its manifest beside it.
        machine: where trtexec ran; None if unknown, since a log names only the GPU.

    Raises:
        InputError: the times are of another run, the log is incomplete, or the model has no manifest.
        OptionError: queries ran concurrently, so they have no latency of their own; or `machine` has no such GPU.
    """
    latency_ms = times["latencyMs"]
    _require_same_run(summary, latency_ms)
    device, warmup = summary.device, summary.warmup
    if device is None or warmup is None:
        why = "It does not name the GPU." if device is None else "It does not state the warm-up."
        raise InputError(f"{summary.source} is incomplete.", why, "Pass all that trtexec printed, from the first line.")
    if machine is not None and device not in (gpu.name for gpu in machine.gpus):
        why = f"Its GPU is {device}, and this machine has {', '.join(gpu.name for gpu in machine.gpus) or 'none'}."
        raise OptionError(f"{summary.source} was not measured here.", why, "Omit --here.")
    manifest = read_manifest(model)
    parts = dict(zip(("host to device", "compute", "device to host"), (times[name] for name in PARTS), strict=True))
    counted = parts if summary.transfers else {"compute": times["computeMs"]}
    return BenchResult(
        artefact=model.name,
        artefact_sha256=manifest.artefact_sha256,
        backend="trtexec",
        backend_version=summary.version or NOT_STATED,
        device=device,
        precision=manifest.precision,
        boundary=summary.boundary,
        # trtexec feeds random values at the network's own size.
        config=BenchConfig(
            iterations=len(latency_ms),
            warmup=warmup,
            frame_hw=manifest.preprocess.size_hw,
            protocol=summary.protocol,
        ),
        machine=machine or _unknown_machine(),
        warmup=warmup,
        telemetry=_telemetry(summary),
        agreement=None,
        latency=summarise(latency_ms),
        # Not split: a copy may be shorter than the resolution of that clock, and count as 0 ms.
        stages={"network": summarise(latency_ms)},
        device_stages={name: summarise(own) for name, own in counted.items() if own.any()},
        findings=latency_warnings(latency_ms),
        overhead_us=0.0,  # a GPU's clock does not see the loop on the host
        samples_ms=latency_ms[:, None],
    )


def _require_same_run(summary: TrtexecSummary, latency_ms: Times) -> None:
    if (summary.inference_streams or 1) > 1:
        why = f"{summary.inference_streams} streams ran concurrently, so the time of a query includes others."
        raise OptionError(
            f"{summary.source} has no latencies of single queries.", why, "Run trtexec without --infStreams."
        )
    median = float(np.median(latency_ms))
    known = summary.queries if summary.queries is not None else len(latency_ms)
    if known != len(latency_ms) or abs(median - summary.latency.median_ms) > SAME * summary.latency.median_ms:
        raise InputError(
            f"The times are not those of the run in {summary.source}.",
            f"There are {len(latency_ms)} with a median of {median:.6g} ms; the log has {known} queries and "
            f"{summary.latency.median_ms:.6g} ms.",
            f"Take both from one run: {AGAIN}",
        )


def _unknown_machine() -> Machine:
    return Machine(
        system=NOT_STATED,
        architecture=NOT_STATED,
        python=NOT_STATED,
        cpu=NOT_STATED,
        cores=0,
        gpus=(),
        jetson=None,
        l4t=None,
    )


def _telemetry(summary: TrtexecSummary) -> Telemetry:
    absent = Unavailable(reason=NOT_STATED)
    return Telemetry(
        seconds=summary.seconds or 0.0,
        own_ms=0.0,
        cpu=absent,
        cpu_others=absent,
        cpu_steal=absent,
        cpu_clock=absent,
        governor=absent,
        temperatures=absent,
        memory=absent,
        memory_peak=absent,
        gpu=absent,
        gpu_clock=absent,
        gpu_power=absent,
        gpu_temperature=absent,
        gpu_memory=absent,
        gpu_throttle=absent,
        rails=absent,
        power_mode=absent,
    )
