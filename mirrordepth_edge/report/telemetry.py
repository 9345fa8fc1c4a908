"""What a machine did during a benchmark, as a page shows it: readings, what was not there, energy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mirrordepth_edge.machine.telemetry import SensorReading, Telemetry
from mirrordepth_edge.machine.unavailable import Unavailable
from mirrordepth_edge.report.tables import Table

SENSORS = {
    "cpu": "CPU busy, all processes",
    "cpu_others": "CPU busy, other processes",
    "cpu_steal": "CPU given to other machines",
    "cpu_clock": "CPU clock",
    "governor": "CPU governor",
    "temperatures": "temperature",
    "memory": "memory of this process",
    "memory_peak": "memory of this process, its peak",
    "gpu": "GPU busy",
    "gpu_clock": "GPU clock",
    "gpu_power": "GPU power",
    "gpu_temperature": "GPU temperature",
    "gpu_memory": "GPU memory, all processes",
    "gpu_throttle": "GPU held back",
    "rails": "power rail",
    "power_mode": "power mode",
}
"""What fields of a `Telemetry` are called, in the order of the page."""
WHOLE = ("MHz", "MiB")
"""Units whose decimals say nothing."""


@dataclass(frozen=True, kw_only=True)
class TelemetryTable:
    """What sensors said during a run."""

    of: str
    """Whose run, where there are several."""
    seconds: float
    readings: Table
    words: tuple[tuple[str, str], ...]
    """Sensors that give a word, and the word."""
    absent: tuple[tuple[str, str], ...]
    """A reason, and the sensors that are absent for it."""
    energy: str
    remarks: tuple[str, ...]
    """What makes the figures hard to repeat."""


def telemetry_table(telemetry: Telemetry, of: str, frames: int, artefacts: int) -> TelemetryTable:
    """What a page says of a context.

    Args:
        of: whose run it was.
        frames: how many there were in it, of all artefacts together.
        artefacts: how many took turns.
    """
    rows, words, absent = [], [], dict[str, list[str]]()
    for label, said in _sensors(telemetry):
        if isinstance(said, SensorReading):
            values = (_with_unit(value, said.unit) for value in (said.mean, said.least, said.most))
            rows.append((label, *values, f"{said.samples}"))
        elif isinstance(said, Unavailable):
            absent.setdefault(said.reason, []).append(label)
        else:
            words.append((label, said))
    return TelemetryTable(
        of=of,
        seconds=telemetry.seconds,
        readings=Table(header=("sensor", "mean", "least", "most", "samples"), rows=tuple(rows)),
        words=tuple(words),
        absent=tuple((reason, ", ".join(labels)) for reason, labels in absent.items()),
        energy=_energy(telemetry, frames, artefacts),
        remarks=tuple(f"{remark[:1].upper()}{remark[1:]}." for remark in telemetry.remarks()),
    )


def _sensors(telemetry: Telemetry) -> Iterator[tuple[str, SensorReading | Unavailable | str]]:
    for field, label in SENSORS.items():
        said = getattr(telemetry, field)
        if isinstance(said, dict):
            yield from ((f"{label}: {part}", own) for part, own in said.items())
        else:
            yield label, said


def _with_unit(value: float, unit: str) -> str:
    return f"{value:.{0 if unit in WHOLE else 1}f}\N{NO-BREAK SPACE}{unit}"


def _energy(telemetry: Telemetry, frames: int, artefacts: int) -> str:
    joules = telemetry.joules_per_frame(frames)
    if isinstance(joules, Unavailable):
        return f"Energy per frame is not known: {joules.reason}."
    turns = "; the mean over the artefacts, which took turns" if artefacts > 1 else ""
    return f"Energy: {joules:.3g} J per frame, drawn by the {telemetry.power[0]}, idle power included{turns}."
