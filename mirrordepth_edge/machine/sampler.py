"""Sample the machine's sensors in a thread while a benchmark runs.

A sensor that does not exist, or that fails, becomes `Unavailable` with the reason, never zero.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from time import perf_counter, thread_time
from types import TracebackType
from typing import Any

from mirrordepth_edge.machine.jetson import RunCommand, read_power_mode, run_command
from mirrordepth_edge.machine.sensors.jetson import gpu_sensors, rail_sensors
from mirrordepth_edge.machine.sensors.linux import cpu_sensors, memory_sensors, temperature_sensors
from mirrordepth_edge.machine.sensors.nvml import load_nvml, nvml_sensors
from mirrordepth_edge.machine.sensors.sensor import Key, Sensor
from mirrordepth_edge.machine.system import read_governor
from mirrordepth_edge.machine.telemetry import SensorReading, SensorValue, Telemetry
from mirrordepth_edge.machine.text_files import ROOT
from mirrordepth_edge.machine.unavailable import Unavailable

INTERVAL_S = 0.2
STOP_S = 0.05
"""Longest wait for the thread at the end; a thread that hangs in a sensor is abandoned."""
NOT_STARTED = Unavailable(reason="the sampler was not started")
GROUPS = ("temperatures", "gpu_throttle", "rails")
CPU_FIELDS = ("cpu", "cpu_others", "cpu_steal", "cpu_clock")
MEMORY_FIELDS = ("memory", "memory_peak")
NVML_FIELDS = ("gpu", "gpu_clock", "gpu_power", "gpu_temperature", "gpu_memory", "gpu_throttle")
FIELDS = (*CPU_FIELDS, *MEMORY_FIELDS, "temperatures", "rails", *NVML_FIELDS)


class TelemetrySampler:
    """Samples sensors during a `with` block; `telemetry()` summarises the samples.

        with TelemetrySampler() as sampler:
            ...
        sampler.telemetry()

    Never raises, and waits at most 50 ms at the end. Entering looks for sensors, before the time of the run starts.
    A sampler can be entered once.

    Args:
        root: folder that holds `proc` and `sys`.
        interval_s: seconds between samples.
        nvml: imports NVML's module, or raises.
        run: runs `nvpmodel -q`.
    """

    def __init__(
        self,
        root: Path = ROOT,
        interval_s: float = INTERVAL_S,
        *,
        nvml: Callable[[], Any] = load_nvml,
        run: RunCommand = run_command,
    ) -> None:
        self._root, self._interval_s = root, interval_s
        self._load_nvml, self._run_command = nvml, run
        self._nvml: Any = None
        self._sensors: list[Sensor] = []
        self._units: dict[Key, str] = {}
        self._samples: dict[Key, list[float]] = {}
        self._unavailable: dict[Key, Unavailable] = {}
        self._governor: str | Unavailable = NOT_STARTED
        self._power_mode: str | Unavailable = NOT_STARTED
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mde-sensors", daemon=True)
        self._started_s: float | None = None
        self._seconds = self._own_s = 0.0

    def __enter__(self) -> TelemetrySampler:
        self.find_sensors()
        self._started_s = perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._seconds, self._started_s = self._elapsed_s(), None
        self._thread.join(STOP_S)

    def telemetry(self) -> Telemetry:
        """Summarise the samples so far."""
        values = {key: self._value(key) for key in [*((field, "") for field in FIELDS), *self._units]}
        fields: dict[str, Any] = {field: value for (field, name), value in values.items() if not name}
        for group in GROUPS:
            by_name = {name: value for (field, name), value in values.items() if field == group and name}
            fields[group] = by_name or fields[group]
        return Telemetry(
            seconds=self._elapsed_s(),
            own_ms=self._own_s * 1e3,
            governor=self._governor,
            power_mode=self._power_mode,
            **fields,
        )

    def find_sensors(self) -> None:
        """Look for the sensors that this machine has."""
        self._governor = read_governor(self._root)
        mode = read_power_mode(self._root, self._run_command)
        self._power_mode = mode if isinstance(mode, Unavailable) else mode.name
        self._add(lambda: cpu_sensors(self._root), CPU_FIELDS)
        self._add(lambda: memory_sensors(self._root), MEMORY_FIELDS)
        self._add(lambda: temperature_sensors(self._root), ("temperatures",))
        self._add(lambda: rail_sensors(self._root), ("rails",))
        # A Jetson's files know more of its GPU than NVML does there, so they come first.
        self._add(lambda: gpu_sensors(self._root), ())
        self._add(self._nvml_sensors, NVML_FIELDS)

    def sample(self) -> None:
        """Read every sensor once; one that fails is unavailable from then on."""
        for sensor in list(self._sensors):
            try:
                for key, value in sensor.read().items():
                    self._samples.setdefault(key, []).append(value)
            except Exception as error:  # whatever it is, the benchmark goes on
                self._sensors.remove(sensor)
                for key in sensor.units:
                    count = len(self._samples.get(key, ()))
                    after = f" (after {count} samples)" if count else ""
                    self._unavailable[key] = Unavailable(reason=_reason(error) + after)

    def _add(self, find: Callable[[], Iterable[Sensor]], fields: Iterable[str]) -> None:
        """Add the sensors that `find` yields; `fields` that none provides are unavailable if it fails."""
        try:
            for sensor in find():
                if not sensor.units.keys() & self._units.keys():
                    self._sensors.append(sensor)
                    self._units.update(sensor.units)
        except Exception as error:  # NVML's exceptions are classes of its module
            provided = {field for field, _ in self._units}
            reason = Unavailable(reason=_reason(error))
            self._unavailable.update({(field, ""): reason for field in fields if field not in provided})

    def _nvml_sensors(self) -> Iterable[Sensor]:
        nvml = self._load_nvml()
        nvml.nvmlInit()
        self._nvml = nvml
        return nvml_sensors(nvml, os.environ)

    def _elapsed_s(self) -> float:
        return self._seconds if self._started_s is None else perf_counter() - self._started_s

    def _value(self, key: Key) -> SensorValue:
        if key in self._unavailable:
            return self._unavailable[key]
        samples = list(self._samples.get(key, ()))
        if samples:
            return summarise(samples, self._units[key])
        return Unavailable(reason="the run was too short for a sample") if key in self._units else NOT_STARTED

    def _run(self) -> None:
        start_s, last_s, count = thread_time(), 0.0, 0
        try:
            while True:
                # A last sample right after another would weigh as much as a whole interval.
                ending = self._stop.is_set()
                if not ending or count < 2 or perf_counter() - last_s > self._interval_s / 2:
                    last_s, count = perf_counter(), count + 1
                    self.sample()
                    self._own_s = thread_time() - start_s
                if ending:
                    return
                self._stop.wait(self._interval_s)
        finally:
            if self._nvml is not None:
                with suppress(Exception):  # nothing depends on NVML any more
                    self._nvml.nvmlShutdown()


def summarise(samples: Sequence[float], unit: str) -> SensorReading:
    """Mean and extremes of at least one sample, percentages limited to 0 to 100."""
    # Counts in ticks put single shares slightly outside 0 to 100. Limiting each would raise their mean, so only the
    # result is limited.
    low, high = (0.0, 100.0) if unit == "%" else (float("-inf"), float("inf"))
    average, least, most = (min(max(value, low), high) for value in (fmean(samples), min(samples), max(samples)))
    return SensorReading(mean=average, least=least, most=most, unit=unit, samples=len(samples))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
