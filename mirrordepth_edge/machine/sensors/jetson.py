"""GPU load, GPU clock and power rails of a Jetson.

Sources of the formats:

- `hwmon*/` named ina3221, with `in[123]_label`, `in[123]_input` (mV) and `curr[123]_input` (mA): the kernel's
  hwmon/ina3221. On a Jetson Orin NX or Nano the rail VDD_IN is the power of the whole module; a Jetson AGX Orin has
  VDD_GPU_SOC, VDD_CPU_CV and VIN_SYS_5V0 and no such rail. Unused channels are labelled NC (Jetson Linux Developer
  Guide, Platform Power and Performance, Jetson Orin).
- `devfreq/*/cur_freq` (Hz): the kernel's ABI/testing/sysfs-class-devfreq. The GPU is `17000000.gpu` (JetPack 6) or
  `17000000.ga10b` (JetPack 5). `load` (per mille) is in the GPU's device folder, `gpu.0` in older releases.

Tested on file trees; not yet run on hardware.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mirrordepth_edge.machine.sensors.linux import read_scaled
from mirrordepth_edge.machine.sensors.sensor import Sensor, single_sensor
from mirrordepth_edge.machine.text_files import read_line, read_text

GPU_LOADS = (
    "sys/class/devfreq/*gpu*/device/load",
    "sys/class/devfreq/*.g[av]1[01]b/device/load",
    "sys/devices/platform/bus@0/*.gpu/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/gpu.0/load",
)
GPU_CLOCKS = ("sys/class/devfreq/*gpu*/cur_freq", "sys/class/devfreq/*.g[av]1[01]b/cur_freq")


def rail_sensors(root: Path) -> Iterator[Sensor]:
    """Power of each rail.

    Raises:
        ValueError: there is no power monitor.
    """
    rails = power_rails(root)
    if not rails:
        raise ValueError("no INA3221 in /sys/class/hwmon")
    for rail, (millivolts, milliamperes) in rails.items():
        yield single_sensor("rails", "W", partial(_watts, millivolts, milliamperes), name=rail)


def gpu_sensors(root: Path) -> Iterator[Sensor]:
    """Load and clock of the GPU; none on other machines."""
    for field, unit, scale, patterns in (("gpu", "%", 0.1, GPU_LOADS), ("gpu_clock", "MHz", 1e-6, GPU_CLOCKS)):
        file = next((file for pattern in patterns for file in sorted(root.glob(pattern))), None)
        if file is not None:
            yield single_sensor(field, unit, partial(read_scaled, file, scale))


def power_rails(root: Path) -> dict[str, tuple[Path, Path]]:
    """Voltage (mV) and current (mA) files of each used INA3221 channel, by its label."""
    rails = {}
    for name in sorted(root.glob("sys/class/hwmon/hwmon*/name")):
        if read_line(name) != "ina3221":
            continue
        # Channels 4 to 6 are the shunt voltages, 7 is their sum.
        for label in sorted(name.parent.glob("in[123]_label")):
            rail, channel = read_line(label), label.name[2]
            if rail != "NC":
                rails[rail] = (name.parent / f"in{channel}_input", name.parent / f"curr{channel}_input")
    return rails


def _watts(millivolts: Path, milliamperes: Path) -> float:
    return float(read_text(millivolts)) * float(read_text(milliamperes)) * 1e-6
