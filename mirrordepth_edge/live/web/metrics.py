"""Metrics of a live run, for the page and for Prometheus."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirrordepth_edge.machine.sensors.linux import thermal_zones

if TYPE_CHECKING:
    from mirrordepth_edge.live.result import LiveResult

ROOT = Path("/")
STALLED_S = 5.0
"""Time without a frame after which a run is reported as unhealthy."""
RATE_WINDOW_S = 2.0
TEMPERATURE_PERIOD_S = 1.0
"""Minimum time between reads of the thermal zones, some of which take a millisecond each."""
SAMPLES = 1000
QUANTILES = (0.5, 0.99)


class Metrics:
    """Metrics of one run. One thread calls `count`; the server's thread does everything else."""

    def __init__(self, setup: Mapping[str, str]) -> None:
        """
        Args:
            setup: the configuration, such as model and precision; the labels of `mde_live_info`.
        """
        self.clients = 0
        self.sent = 0
        """Number of frames sent, over all clients."""
        self.skipped = 0
        """Number of frames not sent because a client was still busy with an earlier one, over all clients."""
        self._setup = dict(setup)
        self._lock = threading.Lock()
        self._last_s = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque()
        self._frames = self._dropped = 0
        self._latency, self._age = _Summary(), _Summary()
        self._zones = thermal_zones(ROOT)
        self._temperatures: dict[str, float] = {}
        self._temperatures_s = float("-inf")

    def count(self, result: LiveResult) -> None:
        """Count a result."""
        now_s = time.monotonic()
        with self._lock:
            self._last_s = now_s
            self._frames, self._dropped = result.number + 1, result.dropped
            self._recent.append((now_s, result.number))
            while len(self._recent) > 2 and now_s - self._recent[0][0] > RATE_WINDOW_S:
                self._recent.popleft()
            self._latency.add(result.latency_ms * 1e-3)
            self._age.add(result.age_ms * 1e-3)

    @property
    def silent_s(self) -> float:
        """Time since the last frame, or since the start before the first one."""
        return time.monotonic() - self._last_s

    def status(self) -> dict[str, Any]:
        """Return the figures that the page shows; unknown ones are None."""
        temperatures = self._read_temperatures()
        with self._lock:
            return {
                "frames": self._frames,
                "dropped": self._dropped,
                "silent_s": round(self.silent_s, 3),
                "rate_hz": self._rate_hz(),
                "latency_ms": self._latency.newest_ms,
                "clients": self.clients,
                "temperatures": temperatures,
            }

    def prometheus(self) -> str:
        """Return all metrics in Prometheus's text format, version 0.0.4."""
        zones = [({"zone": zone}, value) for zone, value in self._read_temperatures().items()]
        with self._lock:
            families: list[tuple[str, str, str, Sequence[tuple[Mapping[str, str], float]]]] = [
                ("live_info", "gauge", "Configuration of the run; always 1.", [(self._setup, 1)]),
                ("frames_total", "counter", "Frames processed.", [({}, self._frames)]),
                ("frames_dropped_total", "counter", "Frames that a newer one replaced.", [({}, self._dropped)]),
                ("rate_hertz", "gauge", "Results per second.", [({}, self._rate_hz() or 0.0)]),
                ("silent_seconds", "gauge", "Time since the last frame.", [({}, self.silent_s)]),
                ("clients", "gauge", "Connected browsers.", [({}, self.clients)]),
                ("client_frames_total", "counter", "Frames sent, over all clients.", [({}, self.sent)]),
                ("client_frames_skipped_total", "counter", "Frames skipped by slow clients.", [({}, self.skipped)]),
            ]
            if zones:
                families.append(("temperature_celsius", "gauge", "Temperature of each thermal zone.", zones))
            lines = [line for family in families for line in _family(*family)]
            lines += self._latency.lines("latency_seconds", "Preprocessing, inference and postprocessing.")
            lines += self._age.lines("age_seconds", "Time from the arrival of a frame to its depth.")
        return "\n".join(lines) + "\n"

    def _rate_hz(self) -> float | None:
        if len(self._recent) < 2:
            return None
        (first_s, first), (last_s, last) = self._recent[0], self._recent[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s and self.silent_s < STALLED_S else 0.0

    def _read_temperatures(self) -> dict[str, float]:
        """Return °C by zone, without zones that cannot be read, such as those of parts that are powered off."""
        if time.monotonic() - self._temperatures_s >= TEMPERATURE_PERIOD_S:
            self._temperatures_s = time.monotonic()
            self._temperatures = {}
            for zone, file in self._zones.items():
                try:
                    self._temperatures[zone] = int(file.read_text(encoding="ascii")) / 1000
                except (OSError, ValueError):
                    continue
        return self._temperatures


class _Summary:
    """Sum and count of all samples, and quantiles of the newest `SAMPLES`, in seconds."""

    def __init__(self) -> None:
        self._samples_s: deque[float] = deque(maxlen=SAMPLES)
        self._sum_s, self._count = 0.0, 0

    def add(self, sample_s: float) -> None:
        self._samples_s.append(sample_s)
        self._sum_s += sample_s
        self._count += 1

    @property
    def newest_ms(self) -> float | None:
        return self._samples_s[-1] * 1e3 if self._samples_s else None

    def lines(self, name: str, text: str) -> list[str]:
        values_s = np.quantile(list(self._samples_s), QUANTILES) if self._samples_s else [float("nan")] * len(QUANTILES)
        samples = [({"quantile": f"{q:g}"}, float(value)) for q, value in zip(QUANTILES, values_s, strict=True)]
        totals = [f"mde_{name}_sum {self._sum_s!r}", f"mde_{name}_count {self._count}"]
        return _family(name, "summary", text, samples) + totals


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> list[str]:
    lines = [f"# HELP mde_{name} {text}", f"# TYPE mde_{name} {kind}"]
    for labels, sample in samples:
        inner = ",".join(f'{label}="{_escape(value)}"' for label, value in labels.items())
        lines.append(f"mde_{name}{{{inner}}} {sample!r}" if inner else f"mde_{name} {sample!r}")
    return lines


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
