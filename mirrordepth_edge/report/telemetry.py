"""Telemetry of a benchmark as a page shows it: readings, unavailable sensors, energy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mirrordepth_edge.machine.telemetry import SensorReading, Telemetry
from mirrordepth_edge.machine.unavailable import Unavailable
from mirrordepth_edge.report.tables import Table

SENSORS = {
    "cpu": "CPU load, all processes",
    "cpu_others": "CPU load, other processes",
    "cpu_steal": "CPU steal (other virtual machines)",
    "cpu_clock": "CPU clock",
    "governor": "CPU governor",
    "temperatures": "temperature",
    "memory": "memory of this process",
    "memory_peak": "peak memory of this process",
    "gpu": "GPU utilization",
    "gpu_clock": "GPU clock",
    "gpu_power": "GPU power",
    "gpu_temperature": "GPU temperature",
    "gpu_memory": "GPU memory, all processes",
    "gpu_throttle": "GPU throttling",
    "rails": "power rail",
    "power_mode": "power mode",
}
"""Labels of the fields of a `Telemetry`, in the order of the page."""
INTEGER_UNITS = ("MHz", "MiB")
"""Units whose decimals do not matter."""


@dataclass(frozen=True, kw_only=True)
class TelemetryTable:
    """Sensor readings of a run."""

    of: str
    """The artefacts of the run, if there are several runs."""
    seconds: float
    readings: Table
    words: tuple[tuple[str, str], ...]
    """Sensors with a textual value, and the value."""
    absent: tuple[tuple[str, str], ...]
    """Reasons, and the sensors unavailable for each."""
    energy: str
    remarks: tuple[str, ...]
    """Why the results are hard to reproduce."""


def telemetry_table(telemetry: Telemetry, of: str, frames: int, artefacts: int) -> TelemetryTable:
    """Format telemetry for a page.

    Args:
        of: the artefacts of the run.
        frames: number of frames, of all artefacts together.
        artefacts: number of interleaved artefacts.
    """
    rows, words, absent = [], [], dict[str, list[str]]()
    for label, value in _sensors(telemetry):
        if isinstance(value, SensorReading):
            statistics = (_with_unit(number, value.unit) for number in (value.mean, value.least, value.most))
            rows.append((label, *statistics, f"{value.samples}"))
        elif isinstance(value, Unavailable):
            absent.setdefault(value.reason, []).append(label)
        else:
            words.append((label, value))
    return TelemetryTable(
        of=of,
        seconds=telemetry.seconds,
        readings=Table(header=("sensor", "mean", "min", "max", "samples"), rows=tuple(rows)),
        words=tuple(words),
        absent=tuple((reason, ", ".join(labels)) for reason, labels in absent.items()),
        energy=_energy(telemetry, frames, artefacts),
        remarks=tuple(f"{remark[:1].upper()}{remark[1:]}." for remark in telemetry.remarks()),
    )


def _sensors(telemetry: Telemetry) -> Iterator[tuple[str, SensorReading | Unavailable | str]]:
    for field, label in SENSORS.items():
        value = getattr(telemetry, field)
        if isinstance(value, dict):
            yield from ((f"{label}: {part}", reading) for part, reading in value.items())
        else:
            yield label, value


def _with_unit(value: float, unit: str) -> str:
    return f"{value:.{0 if unit in INTEGER_UNITS else 1}f}\N{NO-BREAK SPACE}{unit}"


def _energy(telemetry: Telemetry, frames: int, artefacts: int) -> str:
    joules = telemetry.joules_per_frame(frames)
    if isinstance(joules, Unavailable):
        return f"Energy per frame is unknown: {joules.reason}."
    note = "; mean of the interleaved artefacts" if artefacts > 1 else ""
    return f"Energy: {joules:.3g} J per frame, drawn by the {telemetry.power[0]}, idle power included{note}."
