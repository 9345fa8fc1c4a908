"""What measurements leave behind: figures, the raw samples they come from, and all that is needed to repeat them."""

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
"""New keys of a result by those of schema version 3."""


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
        """The board or the CPU, with its cores: a measurement on fewer of them is another one."""
        return f"{self.machine.jetson or self.machine.cpu}, {self.machine.cores} cores"

    @property
    def timed(self) -> str:
        """The boundary without the frame's size, which `frame` tells."""
        return self.boundary.replace(f"{self.frame} ", "")

    @property
    def frame(self) -> str:
        """The camera frame's size, such as `640x480`."""
        height, width = self.config.frame_hw
        return f"{width}x{height}"


@dataclass(frozen=True, kw_only=True)
class Measured(Subject):
    """A measurement of any mode, with what is needed to repeat it."""

    warmup: int
    """Frames that went before the timed ones."""
    telemetry: Telemetry
    """What the machine did meanwhile."""
    agreement: Parity | None
    """Its depth, just before it was timed, against what was stored when it was made; None where nothing was."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; samples are packed (`pack`)."""
        plain = asdict(self) | {"telemetry": self.telemetry.to_json()}
        return {"schema_version": RESULT_VERSION, "mirrordepth_edge": __version__, **plain}


@dataclass(frozen=True, kw_only=True)
class BenchResult(Measured):
    """Latency of frames that go one after another."""

    latency: LatencyStats
    stages: dict[str, LatencyStats]
    """The parts of a frame's time, in order."""
    device_stages: dict[str, LatencyStats]
    """Within the network's time, by the GPU's own clock: copies and compute. Empty where it runs on the CPU."""
    findings: list[LatencyWarning]
    """What speaks against quoting the figures, and what to do about it."""
    overhead_us: float
    """What the loop itself costs a frame, in microseconds: the mean of as many frames with stages that do nothing."""
    samples_ms: npt.NDArray[np.float64]
    """Shape `[frames, stages]`."""

    @property
    def source(self) -> str:
        """What messages call it; a stored one is called by its file's name."""
        return "this run"

    @property
    def frames_ms(self) -> npt.NDArray[np.float64]:
        """Whole frames, the sum of their stages; shape `[frames]`."""
        return self.samples_ms.sum(axis=1)  # type: ignore[no-any-return]

    def to_json(self) -> dict[str, Any]:
        plain = super().to_json()
        del plain["samples_ms"]
        packed = {name: pack(samples) for name, samples in zip(self.stages, self.samples_ms.T, strict=True)}
        return plain | {"samples_ns": packed}


@dataclass(frozen=True, kw_only=True)
class StreamMeasurement(Measured):
    """Behind a camera that does not wait, at several rates."""

    streams: list[StreamResult]
    peak: MaxSustainedRate

    def to_json(self) -> dict[str, Any]:
        plain = super().to_json()
        for own, stream in zip(plain["streams"], self.streams, strict=True):
            del own["taken"], own["ages_ms"], own["results_ms"]
            own |= {"taken": stream.taken.tolist(), "ages_ns": pack(stream.ages_ms)}
        return plain


@dataclass(frozen=True, kw_only=True)
class ThroughputMeasurement(Measured):
    """Several frames in work at once."""

    in_flight: int
    """How many at most."""
    arrangement: str
    """How they are kept in work: "2 sessions" side by side, each on its own frame, or "2 in one engine"."""
    seconds: float
    latency: LatencyStats
    """Of single frames under this load; its `throughput_hz` is of one of those in work."""
    rate_hz: float
    """Frames a second by all together."""
    samples_ms: npt.NDArray[np.float64]
    """Shape `[frames]`, in order of their ends."""

    def to_json(self) -> dict[str, Any]:
        plain = super().to_json()
        del plain["samples_ms"]
        return plain | {"samples_ns": {"frame": pack(self.samples_ms)}}


def pack(samples_ms: npt.NDArray[np.float64]) -> str:
    """Milliseconds as whole nanoseconds: little-endian int64, zlib, base64."""
    return base64.b64encode(zlib.compress(np.rint(samples_ms * 1e6).astype("<i8").tobytes(), 9)).decode("ascii")


def unpack(text: str) -> npt.NDArray[np.float64]:
    """Milliseconds from what `pack` gave.

    Raises:
        ValueError: it is no such text.
    """
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<i8") / 1e6
    except zlib.error as error:
        raise ValueError(str(error)) from error
