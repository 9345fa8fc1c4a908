"""CPU load and clock, memory of this process and temperatures, from Linux's /proc and /sys.

Sources of the formats:

- `/proc/stat`, `/proc/self/stat`, `/proc/self/status`, `/proc/cpuinfo`: proc(5).
- `cpufreq/scaling_cur_freq` (kHz): the kernel's admin-guide/pm/cpufreq.
- `thermal_zone*/type` and `temp` (thousandths of °C): the kernel's ABI/testing/sysfs-class-thermal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from mirrordepth_edge.machine.sensors.sensor import Key, Sensor, single_sensor
from mirrordepth_edge.machine.text_files import read_line, read_text


@dataclass(frozen=True, kw_only=True)
class CpuTimes:
    """Ticks since boot, all cores together."""

    busy: int
    steal: int
    total: int


def cpu_sensors(root: Path) -> Iterator[Sensor]:
    """CPU load by this process, others and the hypervisor, and the mean clock of the cores."""
    load = _CpuLoad(root / "proc/stat", root / "proc/self/stat")
    yield Sensor({("cpu", ""): "%", ("cpu_others", ""): "%", ("cpu_steal", ""): "%"}, load.read)
    clocks = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
    if clocks:
        yield single_sensor("cpu_clock", "MHz", lambda: fmean(read_scaled(file, 1e-3) for file in clocks))
    else:
        yield single_sensor("cpu_clock", "MHz", lambda: _cpuinfo_mhz(root / "proc/cpuinfo"))


def memory_sensors(root: Path) -> Iterator[Sensor]:
    """Resident memory of this process, current and peak."""
    status = root / "proc/self/status"
    yield single_sensor("memory", "MiB", lambda: parse_memory_mib(read_text(status), "VmRSS"))
    yield single_sensor("memory_peak", "MiB", lambda: parse_memory_mib(read_text(status), "VmHWM"))


def temperature_sensors(root: Path) -> Iterator[Sensor]:
    """All thermal zones.

    Raises:
        ValueError: there are none.
    """
    zones = thermal_zones(root)
    if not zones:
        raise ValueError("no thermal zones in /sys/class/thermal")
    for zone, file in zones.items():
        yield single_sensor("temperatures", "°C", partial(read_scaled, file, 1e-3), name=zone)


def thermal_zones(root: Path) -> dict[str, Path]:
    """Temperature files (thousandths of °C) by the type of the zone, plus the folder's name if types repeat."""
    zones: dict[str, Path] = {}
    for kind in sorted(root.glob("sys/class/thermal/thermal_zone*/type")):
        name = read_line(kind)
        zones[name if name not in zones else f"{name} ({kind.parent.name})"] = kind.with_name("temp")
    return zones


def parse_cpu_times(text: str) -> CpuTimes:
    """Parse the first line of `/proc/stat`.

    Raises:
        ValueError: the line is missing.
    """
    match = re.match(r"cpu +((?:\d+ ?){8,})", text)
    if match is None:
        raise ValueError("/proc/stat has no line of all CPUs")
    # Waiting for a disk counts as idle; guest time is part of `user` and `nice` already.
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, match[1].split()[:8])
    busy = user + nice + system + irq + softirq
    return CpuTimes(busy=busy, steal=steal, total=busy + steal + idle + iowait)


def parse_own_ticks(text: str) -> int:
    """`utime` + `stime` of `/proc/self/stat`: CPU ticks of all threads of this process.

    Raises:
        ValueError: the fields are missing.
    """
    fields = text.rpartition(")")[2].split()  # the process name before them may contain blanks and brackets
    if len(fields) < 13:
        raise ValueError("/proc/self/stat is cut short")
    return int(fields[11]) + int(fields[12])  # fields 14 and 15; this list starts at field 3, the state


def parse_memory_mib(text: str, name: str) -> float:
    """A field of `/proc/self/status` in kB, such as VmRSS, in MiB.

    Raises:
        ValueError: there is no such field.
    """
    match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    if match is None:
        raise ValueError(f"/proc/self/status has no {name}")
    return int(match[1]) / 1024


def parse_clocks_mhz(text: str) -> list[float]:
    """The "cpu MHz" of each core in `/proc/cpuinfo`; empty on Arm."""
    return [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]


def read_scaled(file: Path, scale: float) -> float:
    """The number in a file, times `scale`."""
    return float(read_text(file)) * scale


class _CpuLoad:
    """CPU load between two reads; the first read returns nothing."""

    def __init__(self, stat: Path, own_stat: Path) -> None:
        self._stat, self._own_stat = stat, own_stat
        self._previous: tuple[CpuTimes, int] | None = None

    def read(self) -> dict[Key, float]:
        times, own = parse_cpu_times(read_text(self._stat)), parse_own_ticks(read_text(self._own_stat))
        previous, self._previous = self._previous, (times, own)
        if previous is None:
            return {}
        total = times.total - previous[0].total
        if total <= 0:  # less than a tick has passed: the next read counts from the earlier one
            self._previous = previous
            return {}
        busy, own_busy = times.busy - previous[0].busy, own - previous[1]
        return {
            ("cpu", ""): 100 * busy / total,
            ("cpu_others", ""): 100 * (busy - own_busy) / total,
            ("cpu_steal", ""): 100 * (times.steal - previous[0].steal) / total,
        }


def _cpuinfo_mhz(cpuinfo: Path) -> float:
    clocks = parse_clocks_mhz(read_text(cpuinfo))
    if not clocks:
        raise ValueError("no cpufreq, and /proc/cpuinfo has no clock")
    return fmean(clocks)
