"""The figures of a live run, as a page shows them and as Prometheus collects them."""

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
"""Without a frame for so long, a run is no longer healthy."""
RATE_WINDOW_S = 2.0
TEMPERATURE_PERIOD_S = 1.0
"""How often the thermal zones are read at most; some take a millisecond each."""
SAMPLES = 1000
QUANTILES = (0.5, 0.99)


class Metrics:
    """Figures of one run. One thread counts results, another one, the server's, does all the rest."""

    def __init__(self, setup: Mapping[str, str]) -> None:
        """
        Args:
            setup: what runs, such as model and precision; the labels of `mde_live_info`.
        """
        self.clients = 0
        self.sent = 0
        """Frames sent, to all clients together."""
        self.skipped = 0
        """Frames that a client was not sent because it was not done with earlier ones, all together."""
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
        """Take a result's figures."""
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
        """Since the last frame; before the first one, since the start."""
        return time.monotonic() - self._last_s

    def status(self) -> dict[str, Any]:
        """What a page shows next to a frame; None where it cannot be told."""
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
        """All figures in Prometheus's text format, version 0.0.4."""
        zones = [({"zone": zone}, value) for zone, value in self._read_temperatures().items()]
        with self._lock:
            families: list[tuple[str, str, str, Sequence[tuple[Mapping[str, str], float]]]] = [
                ("live_info", "gauge", "What runs; always 1.", [(self._setup, 1)]),
                ("frames_total", "counter", "Frames that got a depth.", [({}, self._frames)]),
                ("frames_dropped_total", "counter", "Frames a newer one replaced.", [({}, self._dropped)]),
                ("rate_hertz", "gauge", "Results per second.", [({}, self._rate_hz() or 0.0)]),
                ("silent_seconds", "gauge", "Time since the last frame.", [({}, self.silent_s)]),
                ("clients", "gauge", "Browsers that are connected.", [({}, self.clients)]),
                ("client_frames_total", "counter", "Frames sent, all clients together.", [({}, self.sent)]),
                ("client_frames_skipped_total", "counter", "Frames a client was too slow for.", [({}, self.skipped)]),
            ]
            if zones:
                families.append(("temperature_celsius", "gauge", "Thermal zones of the kernel.", zones))
            lines = [line for family in families for line in _family(*family)]
            lines += self._latency.lines("latency_seconds", "Preprocessing, network and resize back.")
            lines += self._age.lines("age_seconds", "From a frame's arrival to its depth.")
        return "\n".join(lines) + "\n"

    def _rate_hz(self) -> float | None:
        if len(self._recent) < 2:
            return None
        (first_s, first), (last_s, last) = self._recent[0], self._recent[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s and self.silent_s < STALLED_S else 0.0

    def _read_temperatures(self) -> dict[str, float]:
        """By zone, °C; zones that cannot be read, as those of parts without power, are left out."""
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
    """Sum, count and quantiles of the newest `SAMPLES`, in seconds."""

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
    for labels, value in samples:
        inner = ",".join(f'{label}="{_escaped(words)}"' for label, words in labels.items())
        lines.append(f"mde_{name}{{{inner}}} {value!r}" if inner else f"mde_{name} {value!r}")
    return lines


def _escaped(words: str) -> str:
    return words.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
