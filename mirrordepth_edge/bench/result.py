"""Results of measurements: statistics, raw samples, and the information needed to reproduce them."""

from __future__ import annotations

import base64
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge import __version__
from mirrordepth_edge.bench.stats import LatencyStats, LatencyWarning
from mirrordepth_edge.bench.stream import MaxSustainedRate, StreamResult
from mirrordepth_edge.config import BenchConfig
from mirrordepth_edge.machine.device import Machine
from mirrordepth_edge.machine.telemetry import Telemetry
from mirrordepth_edge.manifest import Parity

RESULT_VERSION = 4
RENAMED_IN_4 = {
    "context": "telemetry",
    "harness_us": "overhead_us",
    "missed": "deadline_miss_rate",
    "most_missed": "max_deadline_miss_rate",
    "held_age_p50_ms": "age_of_information_p50_ms",
    "held_age_p99_ms": "age_of_information_p99_ms",
}
"""Keys of schema version 3 and their present names."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was measured, and where."""

    artefact: str
    artefact_sha256: str
    backend: str
    backend_version: str
    device: str
    """`cpu`, or the GPU's name."""
    precision: str
    boundary: str
    config: BenchConfig
    machine: Machine

    @property
    def computer(self) -> str:
        """The board or the CPU with its number of cores, which may be restricted."""
        return f"{self.machine.jetson or self.machine.cpu}, {self.machine.cores} cores"

    @property
    def timed(self) -> str:
        """The boundary without the frame size (see `frame`)."""
        return self.boundary.replace(f"{self.frame} ", "")

    @property
    def frame(self) -> str:
        """Size of the camera frame, such as `640x480`."""
        height, width = self.config.frame_hw
        return f"{width}x{height}"


@dataclass(frozen=True, kw_only=True)
class Measurement(Subject):
    """What the results of all modes have in common."""

    warmup: int
    """Untimed frames before the timed ones."""
    telemetry: Telemetry
    """Load, clocks, temperatures and power during the timed frames."""
    agreement: Parity | None
    """Difference of the depth to the stored reference, checked before timing; None without a reference."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; samples are packed (`pack`)."""
        plain = asdict(self) | {"telemetry": self.telemetry.to_json()}
        return {"schema_version": RESULT_VERSION, "mirrordepth_edge": __version__, **plain}


@dataclass(frozen=True, kw_only=True)
class BenchResult(Measurement):
    """Latency of frames in a closed loop."""

    latency: LatencyStats
    stages: dict[str, LatencyStats]
    """Parts of the time of a frame, in order."""
    device_stages: dict[str, LatencyStats]
    """Copies and compute within the network's time, on the GPU's clock. Empty on the CPU."""
    findings: list[LatencyWarning]
    """Why the result is unreliable, and what to do about it."""
    overhead_us: float
    """Overhead of the loop per frame, in microseconds: the mean of as many frames with empty stages."""
    samples_ms: npt.NDArray[np.float64]
    """Shape `[frames, stages]`."""

    @property
    def source(self) -> str:
        """Name in messages; a stored result has its file name."""
        return "this run"

    @property
    def frames_ms(self) -> npt.NDArray[np.float64]:
        """Sum of the stages of each frame; shape `[frames]`."""
        return self.samples_ms.sum(axis=1)  # type: ignore[no-any-return]

    def to_json(self) -> dict[str, Any]:
        plain = super().to_json()
        del plain["samples_ms"]
        packed = {name: pack(samples) for name, samples in zip(self.stages, self.samples_ms.T, strict=True)}
        return plain | {"samples_ns": packed}


@dataclass(frozen=True, kw_only=True)
class StreamMeasurement(Measurement):
    """Results with a simulated live camera at several rates."""

    streams: list[StreamResult]
    peak: MaxSustainedRate

    def to_json(self) -> dict[str, Any]:
        plain = super().to_json()
        for fields, stream in zip(plain["streams"], self.streams, strict=True):
            del fields["taken"], fields["ages_ms"], fields["results_ms"]
            fields |= {"taken": stream.taken.tolist(), "ages_ns": pack(stream.ages_ms)}
        return plain


@dataclass(frozen=True, kw_only=True)
class ThroughputMeasurement(Measurement):
    """Throughput with several frames in flight."""

    in_flight: int
    """Maximum number of frames in flight."""
    arrangement: str
    """Either "2 sessions" with a frame each, or "2 in one engine"."""
    seconds: float
    latency: LatencyStats
    """Of single frames under this load; its `throughput_hz` is that of one frame in flight."""
    rate_hz: float
    """Frames per second of all together."""
    samples_ms: npt.NDArray[np.float64]
    """Shape `[frames]`, in order of completion."""

    def to_json(self) -> dict[str, Any]:
        plain = super().to_json()
        del plain["samples_ms"]
        return plain | {"samples_ns": {"frame": pack(self.samples_ms)}}


def pack(samples_ms: npt.NDArray[np.float64]) -> str:
    """Encode milliseconds as whole nanoseconds: little-endian int64, zlib, base64."""
    return base64.b64encode(zlib.compress(np.rint(samples_ms * 1e6).astype("<i8").tobytes(), 9)).decode("ascii")


def unpack(text: str) -> npt.NDArray[np.float64]:
    """Decode the text of `pack` to milliseconds.

    Raises:
        ValueError: `text` is malformed.
    """
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<i8") / 1e6
    except zlib.error as error:
        raise ValueError(str(error)) from error
