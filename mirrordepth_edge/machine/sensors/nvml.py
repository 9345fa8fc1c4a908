"""Load, clock, power, temperature, memory and throttling of an NVIDIA GPU, from NVML.

NVML is used through nvidia-ml-py (module `pynvml`). Tested with a stand-in for NVML; not yet run on hardware.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from mirrordepth_edge.machine.sensors.sensor import Key, Sensor, single_sensor

THROTTLE_REASONS = {
    0x02: "application clock setting",
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "temperature (driver)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
    0x100: "display clock setting",
}
"""Bits of nvmlClocksEventReason* in nvml.h, without "idle", which is no throttling."""


def load_nvml() -> Any:
    """Import nvidia-ml-py.

    Raises:
        ImportError: it is not installed.
    """
    return importlib.import_module("pynvml")


def nvml_sensors(nvml: Any, environment: Mapping[str, str]) -> Iterator[Sensor]:
    """Sensors of the GPU that CUDA uses first.

    Args:
        nvml: nvidia-ml-py's module, initialised.
        environment: environment variables.

    Raises:
        ValueError: see `first_cuda_gpu`.
        NVMLError: NVML failed; the class is the module's.
    """
    gpu = first_cuda_gpu(nvml, environment)
    # The second is the name before driver 535.
    names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
    get_reasons = next(getattr(nvml, name) for name in names if hasattr(nvml, name))

    def read_throttling() -> dict[Key, float]:
        active = throttle_reasons(int(get_reasons(gpu)))
        return {("gpu_throttle", reason): 100.0 * (reason in active) for reason in THROTTLE_REASONS.values()}

    yield single_sensor("gpu", "%", lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
    yield single_sensor("gpu_clock", "MHz", lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM))
    yield single_sensor("gpu_power", "W", lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3)
    yield single_sensor("gpu_temperature", "°C", lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU))
    yield single_sensor("gpu_memory", "MiB", lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**20)
    yield Sensor({("gpu_throttle", reason): "%" for reason in THROTTLE_REASONS.values()}, read_throttling)


def first_cuda_gpu(nvml: Any, environment: Mapping[str, str]) -> Any:
    """NVML's handle of the GPU that CUDA uses first.

    Raises:
        ValueError: the GPU cannot be identified.
    """
    # NVML numbers GPUs by PCI bus, CUDA by default by speed. With several GPUs, an index means the same GPU only with
    # CUDA_DEVICE_ORDER=PCI_BUS_ID; a UUID always does.
    first = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.startswith("GPU-"):
        return nvml.nvmlDeviceGetHandleByUUID(first)
    if not first.isdigit():
        raise ValueError(f"CUDA_VISIBLE_DEVICES={first!r} names no GPU that NVML can find")
    count = int(nvml.nvmlDeviceGetCount())
    if count > 1 and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise ValueError(f"{count} GPUs: set CUDA_DEVICE_ORDER=PCI_BUS_ID, so that NVML and CUDA number them alike")
    return nvml.nvmlDeviceGetHandleByIndex(int(first))


def throttle_reasons(mask: int) -> list[str]:
    """Names of the throttle reasons in NVML's bit mask."""
    return [reason for bit, reason in THROTTLE_REASONS.items() if mask & bit]
