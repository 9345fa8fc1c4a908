"""What TensorRT's own trtexec measured: the summary it prints, and the times it writes with `--exportTimes`.

Both are read as samples/common/sampleReporting.cpp of github.com/NVIDIA/TensorRT writes them (printPerformanceReport
and exportJSONTrace; the same form from v8.6.1 on to v11.1, but for what the warnings advise). A summary has no raw
samples, so that nothing can be compared with it but by eye; the exported times are raw, and make a `BenchResult`.

A query without copies has a latency that is its compute. Whether there were copies is told by the figures, not by the
version: trtexec copies by default up to TensorRT 10 and does not since 11, and can be told otherwise in both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.bench.measure import BOUNDARIES
from mirrordepth_edge.bench.result import BenchResult
from mirrordepth_edge.bench.stats import findings, summarise
from mirrordepth_edge.config import BenchConfig, BenchProtocol
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.machine.device import Machine
from mirrordepth_edge.machine.telemetry import Telemetry
from mirrordepth_edge.machine.unavailable import Unavailable
from mirrordepth_edge.manifest import read_manifest
from mirrordepth_edge.support.files import existing_file

Times = npt.NDArray[np.float64]

PARTS = ("h2dMs", "computeMs", "d2hMs")
SUMMARY_VERSION = 1
NOT_TOLD = "not told by trtexec"
AGAIN = "trtexec --loadEngine=model.plan --exportTimes=times.json > trtexec.log 2>&1"

# As printEpilog calls them.
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
        "captured": r"(CUDA graph capture failed.*)",
        "throughput": r"Throughput: (\S+) qps",
        "warmup": r"Warmup completed (\d+) queries",
        "queries": r"Timing trace has (\d+) queries",
        "seconds": r"Total Host Walltime: (\S+) s",
    }.items()
}
SAME = 1e-3
"""By what share the median of the times may be off the log's, which has six figures."""
QUOTED = 4
"""Errors of a failed run that are told, the last ones."""


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
    """A run of trtexec, as far as its log tells; None where it does not."""

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
    """Queries a second, some of which are in work at once."""
    latency: Spread
    """The sum of the next three, of each query, on the GPU's clock."""
    host_to_device: Spread
    compute: Spread
    device_to_host: Spread
    enqueue: Spread
    """What the host took to hand a query over; not part of the latency."""
    warnings: tuple[str, ...]
    """What trtexec itself holds against its figures, in its words."""
    passed: bool
    """False where the log ends before trtexec said so."""

    @property
    def transfers(self) -> bool:
        """Whether queries copied their tensors."""
        return self.host_to_device.max_ms > 0 or self.device_to_host.max_ms > 0

    @property
    def protocol(self) -> BenchProtocol:
        """Which of our protocols counts the same."""
        return "trtexec-10" if self.transfers else "trtexec-11"

    @property
    def boundary(self) -> str:
        """What `latency` is from and to, in the words of `mde bench`."""
        return BOUNDARIES[self.protocol]

    def to_json(self) -> dict[str, Any]:
        """Plain values; milliseconds unless a name says otherwise."""
        told = {"protocol": self.protocol, "boundary": self.boundary}
        return {"schema_version": SUMMARY_VERSION, "kind": "trtexec summary", **told, **asdict(self)}


def read_log(path: Path) -> TrtexecSummary:
    """Read what trtexec printed.

    Raises:
        InputError: there is no such file, trtexec failed, measured nothing or measured several times, or the log is
            not whole.
    """
    content = existing_file(path, "log").read_bytes()
    # PowerShell's > writes UTF-16.
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    return parse_log(content.decode(encoding, errors="replace"), str(path))


def parse_log(text: str, source: str) -> TrtexecSummary:
    """`read_log`, of text; `source` is what to call it.

    Raises:
        InputError: as `read_log`.
    """
    facts: dict[str, list[str]] = {name: [] for name in (*_FACTS, *TIMES)}
    statuses: list[tuple[str, str | None, str | None]] = []
    errors: list[str] = []
    warnings: list[str] = []
    for line in text.splitlines():
        if status := _STATUS.search(line):
            statuses.append((status[1], status[2], status[3]))
        prefixed = _LEVEL.search(line)
        level, message = (prefixed[1], prefixed[2]) if prefixed else ("I", line.strip())
        if level == "E":
            errors.append(message)
        elif level == "W":
            if message.startswith("* "):
                warnings.append(message.removeprefix("* "))
            elif message.startswith("  ") and warnings:  # its advice
                warnings[-1] += f" {message.strip()}"
        for name, pattern in _FACTS.items():
            if found := pattern.match(message):
                facts[name].append(found[1])
        if found := _TIME.match(message):
            facts[found[1]].append(found[2])
    _refuse_failed(source, [status for status, _, _ in statuses], errors)
    _refuse_other(source, facts)
    first = {name: found[0] for name, found in facts.items() if found}
    command = next((command for _, _, command in statuses if command), None)
    try:
        return TrtexecSummary(
            source=source,
            version=first.get("version") or next((_version(code) for _, code, _ in statuses if code), None),
            command=command,
            model=_model_of(command),
            device=first.get("device"),
            compute_capability=first.get("compute_capability"),
            inference_streams=int(first["streams"]) if "streams" in first else None,
            cuda_graph=first["cuda_graph"] == "Enabled" and "captured" not in first if "cuda_graph" in first else None,
            warmup=int(first["warmup"]) if "warmup" in first else None,
            queries=int(first["queries"]) if "queries" in first else None,
            seconds=_number(first["seconds"]) if "seconds" in first else None,
            throughput_hz=_number(first["throughput"]),
            **{field: _spread(first[name]) for name, field in TIMES.items()},
            warnings=tuple(warnings),
            passed=any(status == "PASSED" for status, _, _ in statuses),
        )
    except (ValueError, KeyError) as error:
        why = f"A figure of its summary is cut off or no number ({error})."
        raise InputError(f"{source} cannot be read.", why, f"Measure again: {AGAIN}") from error


def _refuse_failed(source: str, statuses: Iterable[str], errors: list[str]) -> None:
    if "FAILED" in statuses:
        said = "\n".join(errors[-QUOTED:]) or "It gave no reason."
        cure = "Put that right, then run trtexec again; the log has more above these lines."
        raise InputError(f"trtexec failed, and {source} has no measurement.", said, cure)


def _refuse_other(source: str, facts: Mapping[str, list[str]]) -> None:
    """Anything but one whole summary."""
    summaries = len(facts["summary"])
    if summaries > 1:
        why = f"It has {summaries} performance summaries; which of them is meant?"
        raise InputError(f"{source} is the log of several runs.", why, "Give a log of one run, without tee -a.")
    if not summaries and facts["skipped"]:
        why = "With --skipInference trtexec builds and does not measure."
        raise InputError(f"{source} has no measurement.", why, f"Measure the engine: {AGAIN}")
    if not summaries:
        why = "It has no performance summary: it is no log of trtexec since TensorRT 8, or it was cut off."
        raise InputError(f"{source} has no measurement.", why, f"Measure again: {AGAIN}")
    if missing := [
        name for name in ("Throughput", *TIMES) if not facts["throughput" if name == "Throughput" else name]
    ]:
        why = f"Its performance summary lacks {', '.join(missing)}."
        raise InputError(f"{source} is not whole.", why, f"Give all that trtexec printed, or measure again: {AGAIN}")


def _spread(text: str) -> Spread:
    found = {(name, percentage): _number(value) for name, percentage, value in _FIGURE.findall(text)}
    plain = {f"{name}_ms": found[name, ""] for name in ("min", "mean", "median", "max")}
    return Spread(
        **plain, percentiles_ms={rank: value for (name, rank), value in found.items() if name == "percentile"}
    )


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
    """What `--exportTimes` wrote: a list of objects, a query each, without those of the warm-up.

    Returns:
        Milliseconds of each of `PARTS`, and of `latencyMs`, their sum; without copies it is computeMs. Those of a long
        run are coarse: they are differences of single-precision times since its start, 2 us after 16 s.

    Raises:
        InputError: it is no such file.
    """
    try:
        queries = json.loads(path.read_text(encoding="utf-8"))
        times = {name: np.array([query[name] for query in queries], np.float64) for name in (*PARTS, "latencyMs")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} holds no times of trtexec.", repr(error), "Run trtexec again.") from error
    if not queries:
        raise InputError(f"{path} holds no times of trtexec.", "There is no query in it.", "Run it for longer.")
    if not all(np.isfinite(own).all() for own in times.values()) or (times["latencyMs"] <= 0).any():
        raise InputError(f"{path} holds no times of trtexec.", "Some are not positive numbers.", "Run trtexec again.")
    return times


def result_of(
    summary: TrtexecSummary, times: Mapping[str, Times], model: Path, machine: Machine | None = None
) -> BenchResult:
    """A result that `mde bench compare` takes: trtexec's queries, and the file that it ran.

    Args:
        times: `read_times`, of the same run.
        model: the engine, or the ONNX file that trtexec built one of, with its manifest beside it.
        machine: the one that trtexec ran on. None where that is not known: a log names the GPU only.

    Raises:
        InputError: the times are another run's, the log lacks something, or the model has no manifest.
        OptionError: queries ran side by side, so that none has a latency of its own; or `machine` has no such GPU.
    """
    latency_ms = times["latencyMs"]
    _require_same_run(summary, latency_ms)
    device, warmup = summary.device, summary.warmup
    if device is None or warmup is None:
        why = "It does not name the GPU." if device is None else "It does not tell the warm-up."
        raise InputError(f"{summary.source} is not whole.", why, "Give all that trtexec printed, from its first line.")
    if machine is not None and device not in (gpu.name for gpu in machine.gpus):
        why = f"Its GPU is {device}, and this machine has {', '.join(gpu.name for gpu in machine.gpus) or 'none'}."
        raise OptionError(f"{summary.source} was not measured here.", why, "Leave --here out.")
    manifest = read_manifest(model)
    parts = dict(zip(("host to device", "compute", "device to host"), (times[name] for name in PARTS), strict=True))
    counted = parts if summary.transfers else {"compute": times["computeMs"]}
    return BenchResult(
        artefact=model.name,
        artefact_sha256=manifest.artefact_sha256,
        backend="trtexec",
        backend_version=summary.version or NOT_TOLD,
        device=device,
        precision=manifest.precision,
        boundary=summary.boundary,
        # No camera: the network's own size, random values.
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
        # Whole, for a single copy may be too short for that clock, and last 0 ms.
        stages={"network": summarise(latency_ms)},
        device_stages={name: summarise(own) for name, own in counted.items() if own.any()},
        findings=findings(latency_ms),
        overhead_us=0.0,  # a GPU's clock does not see the loop on the host
        samples_ms=latency_ms[:, None],
    )


def _require_same_run(summary: TrtexecSummary, latency_ms: Times) -> None:
    if (summary.inference_streams or 1) > 1:
        why = f"{summary.inference_streams} streams ran side by side, and each query's time is the others' too."
        raise OptionError(
            f"{summary.source} has no latencies of single queries.", why, "Run trtexec without --infStreams."
        )
    median = float(np.median(latency_ms))
    known = summary.queries if summary.queries is not None else len(latency_ms)
    if known != len(latency_ms) or abs(median - summary.latency.median_ms) > SAME * summary.latency.median_ms:
        raise InputError(
            f"The times are not of the run that {summary.source} tells of.",
            f"There are {len(latency_ms)} with a median of {median:.6g} ms; the log has {known} queries and "
            f"{summary.latency.median_ms:.6g} ms.",
            f"Take both from one run: {AGAIN}",
        )


def _unknown_machine() -> Machine:
    return Machine(
        system=NOT_TOLD, architecture=NOT_TOLD, python=NOT_TOLD, cpu=NOT_TOLD, cores=0, gpus=(), jetson=None, l4t=None
    )


def _telemetry(summary: TrtexecSummary) -> Telemetry:
    absent = Unavailable(reason=NOT_TOLD)
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
