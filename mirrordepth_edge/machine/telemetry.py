"""Load, clocks, temperatures, power, memory and throttling of the machine during a benchmark.

`machine.sampler` samples them; `Telemetry.remarks` lists what makes a result hard to repeat.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mirrordepth_edge.machine.jetson import is_maxn
from mirrordepth_edge.machine.unavailable import Unavailable, to_plain

# Limits above which there is a remark.
BUSY_PERCENT = 10.0
STEAL_PERCENT = 2.0
MAX_CLOCK_SPREAD = 0.1
"""Share of the mean clock."""
MAX_OWN_SHARE = 0.01
MIN_SAMPLES = 5

MODULE_RAIL = "VDD_IN"


@dataclass(frozen=True, kw_only=True)
class SensorReading:
    """Summary of a sensor's samples during a run; percentages are 0 to 100."""

    mean: float
    least: float
    most: float
    unit: str
    samples: int


SensorValue = SensorReading | Unavailable
SensorGroup = dict[str, SensorValue] | Unavailable
"""Values by name, such as those of thermal zones; unavailable if there are none at all."""


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """Sensor values of a run of `seconds`."""

    seconds: float
    own_ms: float
    """CPU time of the sampling itself."""
    cpu: SensorValue
    """All cores and all processes, % of all cores; steal not counted."""
    cpu_others: SensorValue
    """Load of other processes, % of all cores."""
    cpu_steal: SensorValue
    """Time that the hypervisor gave to other machines, % of all cores."""
    cpu_clock: SensorValue
    """Mean of the cores, MHz."""
    governor: str | Unavailable
    """cpufreq governor; comma-separated if the cores differ."""
    temperatures: SensorGroup
    """Thermal zones by type, °C."""
    memory: SensorValue
    """Resident memory of this process, MiB."""
    memory_peak: SensorValue
    """Peak resident memory of this process, MiB."""
    gpu: SensorValue
    """GPU busy, %."""
    gpu_clock: SensorValue
    """SM clock from NVML, or devfreq's clock, MHz."""
    gpu_power: SensorValue
    """Power of the GPU board, from NVML, W."""
    gpu_temperature: SensorValue
    """From NVML, °C; a Jetson's is in `temperatures`."""
    gpu_memory: SensorValue
    """Used by all processes, from NVML, MiB."""
    gpu_throttle: SensorGroup
    """By reason: % of the samples in which the GPU was throttled."""
    rails: SensorGroup
    """Power rails of a Jetson by label, W."""
    power_mode: str | Unavailable
    """Name of a Jetson's nvpmodel mode."""

    @property
    def power(self) -> tuple[str, SensorValue]:
        """What `joules` covers, and its power in W: a Jetson's module, or the GPU board."""
        if isinstance(self.rails, dict) and isinstance(module := self.rails.get(MODULE_RAIL), SensorReading):
            return f"module ({MODULE_RAIL})", module
        if isinstance(self.gpu_power, SensorReading):
            return "GPU board (NVML)", self.gpu_power
        return "nothing", Unavailable(reason=f"{_why_no_module(self.rails)}; {self.gpu_power.reason}")

    @property
    def joules(self) -> float | Unavailable:
        """Energy of the whole run, idle power included: mean power x seconds.

        On many GPUs NVML reports the average of the last second, so that a run of a few seconds includes power drawn
        before it.
        """
        _, power = self.power
        return power if isinstance(power, Unavailable) else power.mean * self.seconds

    def joules_per_frame(self, frames: int) -> float | Unavailable:
        """Energy per frame, if the run had `frames` frames, warm-up included."""
        if frames < 1:
            return Unavailable(reason="the run had no frames")
        joules = self.joules
        return joules if isinstance(joules, Unavailable) else joules / frames

    def remarks(self) -> list[str]:
        """What makes the results hard to repeat, one phrase each."""
        return [*self._cpu_remarks(), *self._gpu_remarks(), *self._sampling_remarks()]

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values; a reading has `mean`, an unavailable value `reason`."""
        joules = self.joules
        energy = {
            "joules": to_plain(joules) if isinstance(joules, Unavailable) else joules,
            "joules_of": self.power[0],
        }
        return {**to_plain(self), **energy, "remarks": self.remarks()}

    def _cpu_remarks(self) -> Iterable[str]:
        if isinstance(self.cpu_others, SensorReading) and self.cpu_others.mean > BUSY_PERCENT:
            yield f"other processes used {self.cpu_others.mean:.0f} % of the CPU during the run"
        if isinstance(self.cpu_steal, SensorReading) and self.cpu_steal.mean > STEAL_PERCENT:
            yield f"the hypervisor gave {self.cpu_steal.mean:.0f} % of the CPU to other machines"
        if isinstance(self.governor, str) and self.governor != "performance":
            yield f"the CPU governor is {self.governor!r}, not 'performance'"
        yield from _clock_remark("CPU", self.cpu_clock)

    def _gpu_remarks(self) -> Iterable[str]:
        throttles = self.gpu_throttle if isinstance(self.gpu_throttle, dict) else {}
        for reason, share in throttles.items():
            if isinstance(share, SensorReading) and share.mean > 0:
                yield f"the GPU was throttled ({reason}) in {share.mean:.0f} % of the samples"
        yield from _clock_remark("GPU", self.gpu_clock)
        if isinstance(self.power_mode, str) and not is_maxn(self.power_mode):
            yield f"the power mode is {self.power_mode!r}, not MAXN"

    def _sampling_remarks(self) -> Iterable[str]:
        # Memory has a value in every sample, unlike the CPU load, so its count is the number of samples.
        if isinstance(self.memory, SensorReading) and self.memory.samples < MIN_SAMPLES:
            yield f"the run took only {self.seconds:.2f} s, too short for the sensors: {self.memory.samples} samples"
        if self.own_ms > MAX_OWN_SHARE * self.seconds * 1e3:
            yield f"reading the sensors took {self.own_ms / self.seconds / 10:.1f} % of a core"


def _why_no_module(rails: SensorGroup) -> str:
    if isinstance(rails, Unavailable):
        return rails.reason
    module = rails.get(MODULE_RAIL)
    return module.reason if isinstance(module, Unavailable) else f"no rail {MODULE_RAIL} among {', '.join(rails)}"


def _clock_remark(name: str, clock: SensorValue) -> Iterable[str]:
    if isinstance(clock, SensorReading) and clock.most - clock.least > MAX_CLOCK_SPREAD * clock.mean:
        yield f"the {name} clock varied between {clock.least:.0f} and {clock.most:.0f} MHz"
