"""What the machine did while a benchmark ran: load, clocks, temperatures, power, memory, throttling.

`bench.sensors` reads it; here it is said in words what makes a figure hard to repeat. A sensor that is not
there, or that fails, is `Absent` with the reason, never zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

# What is worth a remark.
BUSY_PERCENT = 10.0
STEAL_PERCENT = 2.0
CLOCK_MOVED = 0.1
OWN_SHARE = 0.01
FEW_SAMPLES = 5

MODULE_RAIL = "VDD_IN"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a sensor said during a run; percentages are kept within 0 to 100."""

    mean: float
    least: float
    most: float
    unit: str
    samples: int


@dataclass(frozen=True, kw_only=True)
class Absent:
    """A sensor without a value, and why."""

    reason: str


Measured = Reading | Absent
Group = dict[str, Measured] | Absent
"""Readings by name, such as those of thermal zones; absent where there is none at all."""


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """What the machine did during a run of `seconds`."""

    seconds: float
    own_ms: float
    """CPU time that sampling itself took."""
    cpu: Measured
    """All cores and all processes, % of all cores; steal not counted."""
    cpu_others: Measured
    """`cpu` without this process, % of all cores."""
    cpu_steal: Measured
    """Time that a hypervisor gave to others, % of all cores."""
    cpu_clock: Measured
    """Mean over the cores, MHz."""
    governor: str | Absent
    """cpufreq's governor; several, where the cores differ, with commas."""
    temperatures: Group
    """Thermal zones by type, °C."""
    memory: Measured
    """Resident memory of this process, MiB."""
    memory_peak: Measured
    """The most resident memory that this process ever had, MiB."""
    gpu: Measured
    """GPU busy, %."""
    gpu_clock: Measured
    """SM clock by NVML, else devfreq's clock, MHz."""
    gpu_power: Measured
    """The GPU's board, by NVML, W."""
    gpu_temperature: Measured
    """By NVML, °C; a Jetson's is among `temperatures`."""
    gpu_memory: Measured
    """In use by all processes, by NVML, MiB."""
    gpu_throttle: Group
    """By reason, % of the samples in which it held the clock down."""
    rails: Group
    """A Jetson's power rails by label, W."""
    power_mode: str | Absent
    """A Jetson's, as nvpmodel names it."""

    @property
    def power(self) -> tuple[str, Measured]:
        """Whose power `joules` is, and the power in W: a Jetson's module, else the GPU's board."""
        if isinstance(self.rails, dict) and isinstance(module := self.rails.get(MODULE_RAIL), Reading):
            return f"module ({MODULE_RAIL})", module
        if isinstance(self.gpu_power, Reading):
            return "GPU board (NVML)", self.gpu_power
        return "nothing", Absent(reason=f"{_why_no_module(self.rails)}; {self.gpu_power.reason}")

    @property
    def joules(self) -> float | Absent:
        """Energy of the whole run, idle power included: mean W x seconds.

        Many GPUs' NVML gives the power of the last second's average, so that a run of a few seconds is
        charged with what came before it.
        """
        _, power = self.power
        return power if isinstance(power, Absent) else power.mean * self.seconds

    def joules_per_frame(self, frames: int) -> float | Absent:
        """Energy of one of `frames` frames, all those of the run, warm-up included."""
        if frames < 1:
            return Absent(reason="there were no frames")
        joules = self.joules
        return joules if isinstance(joules, Absent) else joules / frames

    def remarks(self) -> list[str]:
        """What makes the figures hard to repeat, a sentence each; empty when nothing was found."""
        return [*self._cpu_remarks(), *self._gpu_remarks(), *self._sampling_remarks()]

    def to_json(self) -> dict[str, Any]:
        """Plain values; a reading has `mean`, an absent one `reason`."""
        joules = self.joules
        energy = {
            "joules": asdict(joules) if isinstance(joules, Absent) else joules,
            "joules_of": self.power[0],
        }
        return {**asdict(self), **energy, "remarks": self.remarks()}

    def _cpu_remarks(self) -> Iterable[str]:
        if isinstance(self.cpu_others, Reading) and self.cpu_others.mean > BUSY_PERCENT:
            yield f"other processes used {self.cpu_others.mean:.0f} % of the CPU meanwhile"
        if isinstance(self.cpu_steal, Reading) and self.cpu_steal.mean > STEAL_PERCENT:
            yield f"the hypervisor gave {self.cpu_steal.mean:.0f} % of the CPU to other machines"
        if isinstance(self.governor, str) and self.governor != "performance":
            yield f"the CPU governor is {self.governor!r}, not 'performance'"
        yield from _clock_remark("CPU", self.cpu_clock)

    def _gpu_remarks(self) -> Iterable[str]:
        throttles = self.gpu_throttle if isinstance(self.gpu_throttle, dict) else {}
        for reason, share in throttles.items():
            if isinstance(share, Reading) and share.mean > 0:
                yield f"the GPU was throttled by {reason} in {share.mean:.0f} % of the samples"
        yield from _clock_remark("GPU", self.gpu_clock)
        if isinstance(self.power_mode, str) and not self.power_mode.startswith("MAXN"):
            yield f"the power mode is {self.power_mode!r}, not the fastest"

    def _sampling_remarks(self) -> Iterable[str]:
        # Memory is sampled at every turn, the first too, so that its count is that of the turns.
        if isinstance(self.memory, Reading) and self.memory.samples < FEW_SAMPLES:
            yield f"the run took only {self.seconds:.2f} s, too short for these sensors: {self.memory.samples} samples"
        if self.own_ms > OWN_SHARE * self.seconds * 1e3:
            yield f"sampling itself took {self.own_ms / self.seconds / 10:.1f} % of a core"


def _why_no_module(rails: Group) -> str:
    if isinstance(rails, Absent):
        return rails.reason
    module = rails.get(MODULE_RAIL)
    return module.reason if isinstance(module, Absent) else f"no rail {MODULE_RAIL} among {', '.join(rails)}"


def _clock_remark(name: str, clock: Measured) -> Iterable[str]:
    if isinstance(clock, Reading) and clock.most - clock.least > CLOCK_MOVED * clock.mean:
        yield f"the {name} clock moved between {clock.least:.0f} and {clock.most:.0f} MHz"
