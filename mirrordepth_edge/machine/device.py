"""This machine and its GPUs. Parsers take text, so that tests need no such machine."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterable
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mirrordepth_edge.machine.jetson import parse_l4t_release
from mirrordepth_edge.machine.text_files import read_line

JETSON_MODEL = Path("/proc/device-tree/model")
L4T_RELEASE = Path("/etc/nv_tegra_release")
CPU_INFO = Path("/proc/cpuinfo")

# The driver's own library needs neither nvidia-smi nor a Python package, works on a Jetson, in a container and on
# Windows, and respects CUDA_VISIBLE_DEVICES.
CUDA_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# As cuda.h declares them; CUdevice, CUresult and CUdevice_attribute are ints.
CUDA_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (POINTER(c_char), c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
}
# CUdevice_attribute
INTEGRATED = 18
COMPUTE_CAPABILITY_MAJOR = 75
COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU, as reported by the CUDA driver."""

    name: str
    compute_capability: str
    """Such as "8.7"."""
    memory_mib: int
    integrated: bool
    """The GPU shares the CPU's memory, as on a Jetson."""
    cuda: str
    """Highest CUDA version that the driver supports, such as "12.6"."""


@dataclass(frozen=True, kw_only=True)
class CudaDriver:
    """Result of querying the CUDA driver."""

    gpus: tuple[Gpu, ...]
    problem: str | None
    """Why no GPU is available; None if one is."""


class CudaDriverError(Exception):
    """A failed call of the CUDA driver, such as "cuInit: CUDA_ERROR_NO_DEVICE (100)"."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine on which a result or report was made."""

    system: str
    architecture: str
    python: str
    cpu: str
    cores: int
    gpus: tuple[Gpu, ...]
    jetson: str | None
    """Board name of a Jetson."""
    l4t: str | None
    """Jetson Linux release, such as "36.4.3"."""


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the installed ones among these distributions."""
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def parse_cpu_name(text: str) -> str | None:
    """CPU name in `/proc/cpuinfo`; None on most Arm machines."""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def parse_gstreamer(build_information: str) -> bool:
    """Whether OpenCV was built with GStreamer, from the text of `cv2.getBuildInformation()`."""
    return re.search(r"^\s*GStreamer:\s+YES\b", build_information, re.MULTILINE) is not None


@cache
def cuda_driver() -> CudaDriver:
    """Query the CUDA driver for the GPUs that this process can use, once per process; never raises."""
    try:
        return CudaDriver(gpus=gpus_of(ctypes.CDLL(CUDA_LIBRARY)), problem=None)
    except CudaDriverError as error:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        setting = "" if visible is None else f", with CUDA_VISIBLE_DEVICES={visible!r}"
        return CudaDriver(gpus=(), problem=f"{error}{setting}")
    except OSError as error:
        return CudaDriver(gpus=(), problem=_load_problem(error))


def _load_problem(error: OSError) -> str:
    text = str(error)
    # The loader names the missing file, which may be a dependency of the driver's library.
    if isinstance(error, FileNotFoundError) or (CUDA_LIBRARY in text and "no such file" in text.lower()):
        return f"{CUDA_LIBRARY} not found: no NVIDIA driver is installed"
    return f"{CUDA_LIBRARY} cannot be loaded: {text}"


def nvidia_gpus() -> tuple[Gpu, ...]:
    """GPUs that this process can use, in CUDA's order."""
    return cuda_driver().gpus


def gpus_of(library: Any) -> tuple[Gpu, ...]:
    """Query a loaded CUDA driver library for its GPUs; returns at least one.

    Raises:
        CudaDriverError: a function is missing or fails, or there is no GPU.
    """
    call = _Calls(library)
    call("cuInit", 0)
    version = call.integer("cuDriverGetVersion")
    count = call.integer("cuDeviceGetCount")
    if count < 1:
        raise CudaDriverError("cuDeviceGetCount: the driver reports no GPU")
    cuda = f"{version // 1000}.{version % 1000 // 10}"  # 12060 is 12.6
    return tuple(_gpu(call, call.integer("cuDeviceGet", ordinal), cuda) for ordinal in range(count))


def _gpu(call: _Calls, handle: int, cuda: str) -> Gpu:
    name, memory_bytes = ctypes.create_string_buffer(256), c_size_t()
    call("cuDeviceGetName", name, len(name), handle)
    call("cuDeviceTotalMem_v2", byref(memory_bytes), handle)
    major = call.integer("cuDeviceGetAttribute", COMPUTE_CAPABILITY_MAJOR, handle)
    minor = call.integer("cuDeviceGetAttribute", COMPUTE_CAPABILITY_MINOR, handle)
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major}.{minor}",
        memory_mib=memory_bytes.value // 2**20,
        integrated=bool(call.integer("cuDeviceGetAttribute", INTEGRATED, handle)),
        cuda=cuda,
    )


class _Calls:
    """Calls the driver's functions by name and checks every return code."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __call__(self, name: str, *arguments: Any) -> None:
        code = self._function(name)(*arguments)
        if code != 0:
            raise CudaDriverError(f"{name}: {self._error_name(code)}")

    def integer(self, name: str, *arguments: Any) -> int:
        """Call a function whose first argument points to an int, and return that int."""
        result = c_int()
        self(name, byref(result), *arguments)
        return result.value

    def _function(self, name: str) -> Any:
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise CudaDriverError(f"{CUDA_LIBRARY} has no function {name}") from error
        function.argtypes, function.restype = CUDA_PROTOTYPES[name], c_int
        return function

    def _error_name(self, code: int) -> str:
        text = c_char_p()
        try:
            known = self._function("cuGetErrorName")(code, byref(text)) == 0
        except CudaDriverError:
            known = False
        return f"{text.value.decode()} ({code})" if known and text.value else str(code)


def machine() -> Machine:
    """Describe this machine."""
    return Machine(
        system=platform.platform(terse=True),
        architecture=platform.machine(),
        python=platform.python_version(),
        cpu=parse_cpu_name(read_line(CPU_INFO)) or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        gpus=nvidia_gpus(),
        jetson=jetson_model(),
        l4t=parse_l4t_release(read_line(L4T_RELEASE)),
    )


def jetson_model() -> str | None:
    """Board name, such as "NVIDIA Jetson Orin Nano Developer Kit"; None if this is not a Jetson."""
    model = read_line(JETSON_MODEL).strip("\0\n ")
    return model if "jetson" in model.lower() or "orin" in model.lower() else None
