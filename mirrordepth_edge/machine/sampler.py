"""The sensors of `bench.telemetry`: a thread reads the kernel's own text files a few times a second.

A sensor that is not there, or that fails, is `Absent` with the reason, never zero.

Where the files are described:

- `/proc/stat`, `/proc/self/stat`, `/proc/self/status`, `/proc/cpuinfo`: proc(5).
- `cpufreq/scaling_cur_freq` (kHz) and `scaling_governor`: the kernel's admin-guide/pm/cpufreq.
- `thermal_zone*/type` and `temp` (thousandths of °C): the kernel's ABI/testing/sysfs-class-thermal.
- `hwmon*/` named ina3221, with `in[123]_label`, `in[123]_input` (mV) and `curr[123]_input` (mA): the
  kernel's hwmon/ina3221. On a Jetson Orin NX or Nano the rail VDD_IN is all that the module draws; a
  Jetson AGX Orin has VDD_GPU_SOC, VDD_CPU_CV and VIN_SYS_5V0 and no such rail, and unused channels
  are labelled NC (Jetson Linux Developer Guide, Platform Power and Performance, Jetson Orin).
- `devfreq/*/cur_freq` (Hz): the kernel's ABI/testing/sysfs-class-devfreq. The GPU is there as
  `17000000.gpu` (JetPack 6) or `17000000.ga10b` (JetPack 5). `load` (promille) is in the GPU's device
  folder, which older releases also name `gpu.0`.
- NVML: nvidia-ml-py (module `pynvml`), and the reasons' bits as nvml.h names them.

Not yet run on hardware: NVML, and a Jetson's GPU load and clock, power rails and `nvpmodel`; they are
tested on file trees and on a stand-in for NVML.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, thread_time
from types import TracebackType
from typing import Any

from mirrordepth_edge.machine.telemetry import Absent, Measured, Reading, Telemetry

INTERVAL_S = 0.2
STOP_S = 0.05
"""Longest wait for the thread at the end; one that hangs in a sensor is left behind."""
NVPMODEL_S = 2.0

GPU_LOADS = (
    "sys/class/devfreq/*gpu*/device/load",
    "sys/class/devfreq/*.g[av]1[01]b/device/load",
    "sys/devices/platform/bus@0/*.gpu/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/gpu.0/load",
)
GPU_CLOCKS = ("sys/class/devfreq/*gpu*/cur_freq", "sys/class/devfreq/*.g[av]1[01]b/cur_freq")
THROTTLES = {
    0x02: "application clock setting",
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "temperature (driver)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
    0x100: "display clock setting",
}
"""nvmlClocksEventReason*, without idle, which throttles nothing."""


@dataclass(frozen=True, kw_only=True)
class CpuTimes:
    """Ticks since boot, all cores together."""

    busy: int
    steal: int
    total: int


def parse_cpu_times(text: str) -> CpuTimes:
    """The first line of `/proc/stat`.

    Waiting for a disk is idle. Guests' time is in `user` and `nice` already.

    Raises:
        ValueError: it has no such line.
    """
    match = re.match(r"cpu +((?:\d+ ?){8,})", text)
    if match is None:
        raise ValueError("/proc/stat has no line of all CPUs")
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, match[1].split()[:8])
    busy = user + nice + system + irq + softirq
    return CpuTimes(busy=busy, steal=steal, total=busy + steal + idle + iowait)


def parse_own_ticks(text: str) -> int:
    """`utime` + `stime` of `/proc/self/stat`, all threads; the name before them may hold blanks and brackets.

    Raises:
        ValueError: it has no such fields.
    """
    fields = text.rpartition(")")[2].split()
    if len(fields) < 13:
        raise ValueError("/proc/self/stat is cut short")
    return int(fields[11]) + int(fields[12])  # the 14th and 15th; the state, the 3rd, comes first here


def parse_memory_mib(text: str) -> dict[str, float]:
    """VmRSS and VmHWM of `/proc/self/status`, MiB; those that it has."""
    found = re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(kib) / 1024 for name, kib in found}


def parse_clocks_mhz(text: str) -> list[float]:
    """Each core's "cpu MHz" of `/proc/cpuinfo`; empty on Arm."""
    return [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]


def parse_power_mode(text: str) -> str | None:
    """Mode of `nvpmodel -q`: `NV Power Mode: 15W` is "15W"."""
    match = re.search(r"NV Power Mode:[ \t]*(\S.*)", text)
    return match[1].strip() if match else None


def throttle_words(mask: int) -> list[str]:
    """What NVML's reasons say of a clock that is held down; empty when it is not."""
    return [word for bit, word in THROTTLES.items() if mask & bit]


def power_rails(root: Path) -> dict[str, tuple[Path, Path]]:
    """Files of voltage (mV) and current (mA) of each INA3221 channel by its label, unused ones left out."""
    found = {}
    for name in sorted(root.glob("sys/class/hwmon/hwmon*/name")):
        if _text(name).strip() != "ina3221":
            continue
        # Channels 4 to 6 are the shunts' voltages, 7 their sum.
        for label in sorted(name.parent.glob("in[123]_label")):
            rail, channel = _text(label).strip(), label.name[2]
            if rail != "NC":
                found[rail] = (name.parent / f"in{channel}_input", name.parent / f"curr{channel}_input")
    return found


def thermal_zones(root: Path) -> dict[str, Path]:
    """Files of temperature (thousandths of °C) by the zone's type, and its folder's name where types repeat."""
    found: dict[str, Path] = {}
    for kind in sorted(root.glob("sys/class/thermal/thermal_zone*/type")):
        name = _text(kind).strip()
        found[name if name not in found else f"{name} ({kind.parent.name})"] = kind.with_name("temp")
    return found


def governor(root: Path) -> str | Absent:
    """cpufreq's governor; several, where the cores differ, in order of their names."""
    try:
        files = root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
        names = {_text(file).strip() for file in files}
    except OSError as error:
        return Absent(reason=_reason(error))
    return ", ".join(sorted(names)) or Absent(reason="no cpufreq: the system does not show a governor")


def ask_nvpmodel() -> str:
    """Text of `nvpmodel -q`.

    Raises:
        OSError: it is not there.
        ValueError: it failed, or this is root, as whom it is not asked.
        subprocess.TimeoutExpired: it took more than two seconds.
    """
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        raise ValueError("nvpmodel is not run as root")
    command = ["nvpmodel", "-q"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=NVPMODEL_S, check=False
    )
    if done.returncode != 0:
        raise ValueError(f"nvpmodel -q failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def load_nvml() -> Any:
    """nvidia-ml-py's module.

    Raises:
        ImportError: it is not installed.
    """
    return importlib.import_module("pynvml")


def chosen_gpu(nvml: Any, environment: Mapping[str, str]) -> Any:
    """NVML's handle of the GPU that CUDA takes first.

    NVML counts in the order of the PCI bus, CUDA by default the fastest first: with several GPUs an
    index names the same one only under CUDA_DEVICE_ORDER=PCI_BUS_ID, and a UUID always.

    Raises:
        ValueError: which one it is cannot be told.
    """
    first = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.startswith("GPU-"):
        return nvml.nvmlDeviceGetHandleByUUID(first)
    if not first.isdigit():
        raise ValueError(f"CUDA_VISIBLE_DEVICES={first!r} names no GPU that NVML could find")
    count = int(nvml.nvmlDeviceGetCount())
    if count > 1 and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise ValueError(f"{count} GPUs: set CUDA_DEVICE_ORDER=PCI_BUS_ID, so that NVML and CUDA count alike")
    return nvml.nvmlDeviceGetHandleByIndex(int(first))


Key = tuple[str, str]
"""A field of `Telemetry`, and the name within it where it is a group, else ""."""


@dataclass(frozen=True)
class _Source:
    """One reading that gives one or several values; where it fails they are absent together."""

    units: Mapping[Key, str]
    read: Callable[[], Mapping[Key, float]]


class TelemetrySampler:
    """Reads sensors while a benchmark runs: `with Sampler() as sampler: ...`, then `sampler.telemetry()`.

    It raises nothing of its own and waits at most 50 ms at the end. Entering looks for sensors, which
    on a Jetson asks nvpmodel once, before the time of the run begins. A sampler is entered once.

    Args:
        root: folder that holds `proc` and `sys`.
        interval_s: seconds between samples.
        nvml: gives NVML's module, or raises why there is none.
        nvpmodel: gives the text of `nvpmodel -q`, or raises why there is none.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        interval_s: float = INTERVAL_S,
        *,
        nvml: Callable[[], Any] = load_nvml,
        nvpmodel: Callable[[], str] = ask_nvpmodel,
    ) -> None:
        self._root, self._interval_s = root, interval_s
        self._load_nvml, self._ask_nvpmodel = nvml, nvpmodel
        self._nvml: Any = None
        self._sources: list[_Source] = []
        self._units: dict[Key, str] = {}
        self._samples: dict[Key, list[float]] = {}
        self._absent: dict[Key, Absent] = {}
        self._governor: str | Absent = Absent(reason=NOT_STARTED)
        self._power_mode: str | Absent = Absent(reason=NOT_STARTED)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mde-sensors", daemon=True)
        self._started_s: float | None = None
        self._seconds = self._own_s = 0.0

    def __enter__(self) -> TelemetrySampler:
        self._find()
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
        """What was seen, so far or in all."""
        readings = {key: self._measured(key) for key in [*((field, "") for field in FIELDS), *self._units]}
        fields: dict[str, Any] = {field: value for (field, part), value in readings.items() if not part}
        for group in GROUPS:
            named = {part: value for (field, part), value in readings.items() if field == group and part}
            fields[group] = named or fields[group]
        return Telemetry(
            seconds=self._elapsed_s(),
            own_ms=self._own_s * 1e3,
            governor=self._governor,
            power_mode=self._power_mode,
            **fields,
        )

    def _elapsed_s(self) -> float:
        return self._seconds if self._started_s is None else perf_counter() - self._started_s

    def _measured(self, key: Key) -> Measured:
        if key in self._absent:
            return self._absent[key]
        samples = list(self._samples.get(key, ()))
        if not samples:
            return Absent(reason="the run was too short for a sample" if key in self._units else NOT_STARTED)
        return summary(samples, self._units[key])

    # The thread

    def _run(self) -> None:
        begun_s, last_s, turns = thread_time(), 0.0, 0
        try:
            while True:
                # A last turn right after another would weigh as much as a whole interval.
                ending = self._stop.is_set()
                if not ending or turns < 2 or perf_counter() - last_s > self._interval_s / 2:
                    last_s, turns = perf_counter(), turns + 1
                    self.sample()
                    self._own_s = thread_time() - begun_s
                if ending:
                    return
                self._stop.wait(self._interval_s)
        finally:
            self._close_nvml()

    def sample(self) -> None:
        """Read every sensor once; one that fails is absent from then on. The thread does it."""
        for source in list(self._sources):
            try:
                for key, value in source.read().items():
                    self._samples.setdefault(key, []).append(value)
            except Exception as error:  # whatever it is, the benchmark goes on
                self._sources.remove(source)
                for key in source.units:
                    count = len(self._samples.get(key, ()))
                    after = f" (after {count} samples)" if count else ""
                    self._absent[key] = Absent(reason=_reason(error) + after)

    # Which sensors there are

    def _find(self) -> None:
        self._governor = governor(self._root)
        try:
            mode = parse_power_mode(self._ask_nvpmodel())
            self._power_mode = mode or Absent(reason="nvpmodel -q names no mode")
        except Exception as error:
            self._power_mode = Absent(reason=_reason(error))
        for find, fields in (
            (self._find_cpu, CPU_FIELDS),
            (self._find_memory, MEMORY_FIELDS),
            (self._find_temperatures, ("temperatures",)),
            (self._find_rails, ("rails",)),
            (self._find_jetson_gpu, ()),
            (self._find_nvml, NVML_FIELDS),
        ):
            try:
                find()
            except Exception as error:  # NVML's own kinds are there only where it is
                self._lack(fields, error)

    def _lack(self, fields: Iterable[str], error: Exception) -> None:
        found = {field for field, _ in self._units}
        self._absent.update({(field, ""): Absent(reason=_reason(error)) for field in fields if field not in found})

    def _add(self, units: Mapping[Key, str], read: Callable[[], Mapping[Key, float]]) -> None:
        self._sources.append(_Source(units, read))
        self._units.update(units)

    def _add_one(self, field: str, part: str, unit: str, read: Callable[[], float]) -> None:
        self._add({(field, part): unit}, lambda: {(field, part): float(read())})

    def _find_cpu(self) -> None:
        shares = _CpuShares(self._root / "proc/stat", self._root / "proc/self/stat")
        self._add({("cpu", ""): "%", ("cpu_others", ""): "%", ("cpu_steal", ""): "%"}, shares.read)
        clocks = sorted(self._root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
        if clocks:
            self._add_one("cpu_clock", "", "MHz", lambda: _mean([_scaled(file, 1e-3) for file in clocks]))
        else:
            self._add_one("cpu_clock", "", "MHz", lambda: _cpuinfo_mhz(self._root / "proc/cpuinfo"))

    def _find_memory(self) -> None:
        status = self._root / "proc/self/status"
        self._add_one("memory", "", "MiB", lambda: _memory_mib(status, "VmRSS"))
        self._add_one("memory_peak", "", "MiB", lambda: _memory_mib(status, "VmHWM"))

    def _find_temperatures(self) -> None:
        zones = thermal_zones(self._root)
        if not zones:
            raise ValueError("no thermal zones in /sys/class/thermal")
        for zone, file in zones.items():
            self._add_one("temperatures", zone, "°C", partial(_scaled, file, 1e-3))

    def _find_rails(self) -> None:
        rails = power_rails(self._root)
        if not rails:
            raise ValueError("no INA3221 in /sys/class/hwmon")
        for rail, files in rails.items():
            self._add_one("rails", rail, "W", partial(_watts, *files))

    def _find_jetson_gpu(self) -> None:
        for field, unit, scale, patterns in (("gpu", "%", 0.1, GPU_LOADS), ("gpu_clock", "MHz", 1e-6, GPU_CLOCKS)):
            file = next((file for pattern in patterns for file in sorted(self._root.glob(pattern))), None)
            if file is not None:
                self._add_one(field, "", unit, partial(_scaled, file, scale))

    def _find_nvml(self) -> None:
        """What NVML has and a Jetson's files, which know more of its GPU, have not."""
        nvml = self._load_nvml()
        nvml.nvmlInit()
        self._nvml = nvml
        gpu = chosen_gpu(nvml, os.environ)
        # The second is the name before driver 535.
        names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        reasons = next(getattr(nvml, name) for name in names if hasattr(nvml, name))

        def throttles() -> dict[Key, float]:
            held = throttle_words(int(reasons(gpu)))
            return {("gpu_throttle", word): 100.0 * (word in held) for word in THROTTLES.values()}

        single: tuple[tuple[str, str, Callable[[], float]], ...] = (
            ("gpu", "%", lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
            ("gpu_clock", "MHz", lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
            ("gpu_power", "W", lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3),
            ("gpu_temperature", "°C", lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
            ("gpu_memory", "MiB", lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**20),
        )
        for field, unit, read in single:
            if (field, "") not in self._units:
                self._add_one(field, "", unit, read)
        self._add({("gpu_throttle", word): "%" for word in THROTTLES.values()}, throttles)

    def _close_nvml(self) -> None:
        if self._nvml is not None:
            try:
                self._nvml.nvmlShutdown()
            except Exception:  # on the way out nothing depends on it any more
                self._nvml = None


NOT_STARTED = "the sampler was not started"
GROUPS = ("temperatures", "gpu_throttle", "rails")
CPU_FIELDS = ("cpu", "cpu_others", "cpu_steal", "cpu_clock")
MEMORY_FIELDS = ("memory", "memory_peak")
NVML_FIELDS = ("gpu", "gpu_clock", "gpu_power", "gpu_temperature", "gpu_memory", "gpu_throttle")
FIELDS = (*CPU_FIELDS, *MEMORY_FIELDS, "temperatures", "rails", *NVML_FIELDS)


def summary(samples: Sequence[float], unit: str) -> Reading:
    """Mean and extremes of at least one sample.

    Percentages are brought into 0 to 100 here and not one by one: counts in ticks put single shares
    beside that range, and cutting each would lift their mean.
    """
    low, high = (0.0, 100.0) if unit == "%" else (float("-inf"), float("inf"))
    mean, least, most = (min(max(value, low), high) for value in (_mean(samples), min(samples), max(samples)))
    return Reading(mean=mean, least=least, most=most, unit=unit, samples=len(samples))


class _CpuShares:
    """Shares of all cores between one reading and the next; nothing at the first."""

    def __init__(self, stat: Path, own: Path) -> None:
        self._stat, self._own = stat, own
        self._before: tuple[CpuTimes, int] | None = None

    def read(self) -> dict[Key, float]:
        times, own = parse_cpu_times(_text(self._stat)), parse_own_ticks(_text(self._own))
        before, self._before = self._before, (times, own)
        if before is None:
            return {}
        total = times.total - before[0].total
        if total <= 0:  # less than a tick ago: the next reading counts from the earlier one
            self._before = before
            return {}
        busy, ours = times.busy - before[0].busy, own - before[1]
        return {
            ("cpu", ""): 100 * busy / total,
            ("cpu_others", ""): 100 * (busy - ours) / total,
            ("cpu_steal", ""): 100 * (times.steal - before[0].steal) / total,
        }


def _memory_mib(status: Path, name: str) -> float:
    found = parse_memory_mib(_text(status))
    if name not in found:
        raise ValueError(f"/proc/self/status has no {name}")
    return found[name]


def _cpuinfo_mhz(cpuinfo: Path) -> float:
    clocks = parse_clocks_mhz(_text(cpuinfo))
    if not clocks:
        raise ValueError("no cpufreq, and /proc/cpuinfo has no clock")
    return _mean(clocks)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _scaled(file: Path, scale: float) -> float:
    return float(_text(file)) * scale


def _watts(millivolts: Path, milliamperes: Path) -> float:
    return float(_text(millivolts)) * float(_text(milliamperes)) * 1e-6


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
