"""Parsers on text as the tools print it, a CUDA driver of our own making, and the machine itself."""

from __future__ import annotations

import ctypes
import os
import re
import site
import subprocess
import sys
from collections.abc import Callable, Iterator
from ctypes import c_int
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mirrordepth_edge.machine import device
from mirrordepth_edge.machine.device import CUDA_PROTOTYPES, CudaDriver, CudaDriverError, Gpu
from mirrordepth_edge.machine.jetson import parse_l4t_release

ORIN_NANO = "NVIDIA Jetson Orin Nano Developer Kit"
R36 = """# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025
# KERNEL_VARIANT: oot
TARGET_USERSPACE_LIB_DIR=nvidia
"""
R35 = "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1 2023"

ORIN = Gpu(name="Orin", compute_capability="8.7", memory_mib=7620, integrated=True, cuda="12.6")
ADA = Gpu(name="NVIDIA GeForce RTX 4090", compute_capability="8.9", memory_mib=24564, integrated=False, cuda="12.6")

CUDA_HEADERS = sorted(
    path
    for folder in (Path("/usr/local"), *map(Path, site.getsitepackages()))
    for pattern in ("cuda*/include/cuda.h", "nvidia/*/include/cuda.h", "triton/backends/nvidia/include/cuda.h")
    for path in folder.glob(pattern)
)
DRIVER_STUBS = sorted(Path("/usr/local").glob("cuda*/**/stubs/libcuda.so"))


def fake_driver(gpus: tuple[Gpu, ...], fails: str = "", code: int = 999, version: int = 12060) -> SimpleNamespace:
    """A driver library as ctypes opens one: C functions with the prototypes of `CUDA_PROTOTYPES`.

    Args:
        fails: the function that returns `code`; with `cuDeviceGetAttribute:75`, for that attribute only.
    """

    def handle(gpu: int) -> int:
        return 40 + gpu  # a driver need not number its handles as its devices

    def answer(name: str, out: Any, arguments: tuple[int, ...]) -> int:
        if name == "cuGetErrorName":
            return 1  # CUDA_ERROR_INVALID_VALUE: a code that it does not know
        if name == "cuDriverGetVersion":
            out[0] = version
        elif name == "cuDeviceGetCount":
            out[0] = len(gpus)
        elif name == "cuDeviceGet":
            out[0] = handle(arguments[0])
        elif name != "cuInit":
            fill(name, out, gpus[arguments[-1] - handle(0)], arguments)
        return 0

    def fill(name: str, out: Any, gpu: Gpu, arguments: tuple[int, ...]) -> None:
        major, minor = map(int, gpu.compute_capability.split("."))
        if name == "cuDeviceGetName":
            text = gpu.name.encode()[: arguments[0] - 1] + b"\0"
            ctypes.memmove(out, text, len(text))
        elif name == "cuDeviceGetAttribute":
            out[0] = {75: major, 76: minor, 18: int(gpu.integrated)}[arguments[0]]
        elif name == "cuDeviceTotalMem_v2":
            out[0] = gpu.memory_mib * 2**20 + 4096
        else:
            raise AssertionError(name)

    def function(name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            attribute = f"{name}:{arguments[1]}" if name == "cuDeviceGetAttribute" else name
            if fails and fails in (name, attribute):
                return code
            fills_nothing_first = name in ("cuGetErrorName", "cuInit")
            out, rest = (None, arguments) if fills_nothing_first else (arguments[0], arguments[1:])
            return answer(name, out, rest)

        return ctypes.CFUNCTYPE(c_int, *CUDA_PROTOTYPES[name])(call)

    return SimpleNamespace(**{name: function(name) for name in CUDA_PROTOTYPES})


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine without Jetson files and without a CUDA driver; the folder of its files."""
    for name in ("JETSON_MODEL", "L4T_RELEASE", "CPU_INFO"):
        monkeypatch.setattr(device, name, tmp_path / name)
    monkeypatch.setattr(device, "CUDA_LIBRARY", "libmirrordepth_absent.so.1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    device.cuda_driver.cache_clear()
    yield tmp_path
    device.cuda_driver.cache_clear()


def use_driver(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    """Open `library` where the driver's is asked for; an exception is raised."""

    def load(name: str) -> Any:
        if isinstance(library, Exception):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)


@pytest.mark.parametrize("gpus", [(ORIN,), (ADA, ORIN)])
def test_the_driver_names_its_gpus(gpus: tuple[Gpu, ...]) -> None:
    assert device.gpus_of(fake_driver(gpus)) == gpus


@pytest.mark.parametrize(("version", "cuda"), [(11040, "11.4"), (12060, "12.6"), (12080, "12.8"), (13000, "13.0")])
def test_the_drivers_cuda_version(version: int, cuda: str) -> None:
    (gpu,) = device.gpus_of(fake_driver((ADA,), version=version))
    assert gpu.cuda == cuda


FAILURES = [name for name in CUDA_PROTOTYPES if name != "cuGetErrorName"]


@pytest.mark.parametrize("fails", [*FAILURES, *(f"cuDeviceGetAttribute:{number}" for number in (75, 76, 18))])
def test_each_call_may_fail(fails: str, bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch, fake_driver((ADA,), fails=fails, code=999))
    assert device.cuda_driver() == CudaDriver(gpus=(), problem=f"{fails.split(':')[0]}: 999")
    assert device.nvidia_gpus() == ()


@pytest.mark.parametrize("missing", CUDA_PROTOTYPES)
def test_a_driver_without_a_function(missing: str) -> None:
    library = fake_driver((ADA,), fails="cuInit", code=3) if missing == "cuGetErrorName" else fake_driver((ADA,))
    delattr(library, missing)
    with pytest.raises(
        CudaDriverError, match="cuInit: 3" if missing == "cuGetErrorName" else f"has no function {missing}"
    ):
        device.gpus_of(library)


def test_an_error_is_named_where_the_driver_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def name_it(code: int, text: Any) -> int:
        text[0] = b"CUDA_ERROR_NO_DEVICE"
        return 0

    library = fake_driver((), fails="cuInit", code=100)
    library.cuGetErrorName = ctypes.CFUNCTYPE(c_int, *CUDA_PROTOTYPES["cuGetErrorName"])(name_it)
    with pytest.raises(CudaDriverError, match=r"^cuInit: CUDA_ERROR_NO_DEVICE \(100\)$"):
        device.gpus_of(library)


def test_a_driver_without_gpus() -> None:
    with pytest.raises(CudaDriverError, match="reports no GPU"):
        device.gpus_of(fake_driver(()))


def test_no_driver(bare_machine: Path) -> None:
    driver = device.cuda_driver()
    assert driver.gpus == ()
    assert driver.problem == "libmirrordepth_absent.so.1 not found: no NVIDIA driver is installed"


def test_a_driver_that_misses_a_library(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a Jetson's container that was started without the NVIDIA runtime."""
    text = "libnvrm_gpu.so: cannot open shared object file: No such file or directory"
    use_driver(monkeypatch, OSError(text))
    assert device.cuda_driver().problem == f"{device.CUDA_LIBRARY} cannot be loaded: {text}"


def test_hidden_gpus_are_reported(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch, fake_driver((ADA,), fails="cuInit", code=100))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device.cuda_driver().problem == "cuInit: 100, with CUDA_VISIBLE_DEVICES=''"


def test_the_driver_is_asked_once(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch, fake_driver((ADA,)))
    assert device.nvidia_gpus() == (ADA,)
    use_driver(monkeypatch, OSError("asked again"))
    assert device.nvidia_gpus() == (ADA,)


@pytest.mark.parametrize("header", CUDA_HEADERS[:1] or [None])
def test_prototypes_are_those_of_cuda_h(header: Path | None) -> None:
    if header is None:
        pytest.skip("no CUDA toolkit is installed")
    text = header.read_text(encoding="utf-8", errors="replace")
    types = {
        "unsigned int": ctypes.c_uint,
        "int": c_int,
        "int *": ctypes.POINTER(c_int),
        "char *": ctypes.POINTER(ctypes.c_char),
        "const char **": ctypes.POINTER(ctypes.c_char_p),
        "size_t *": ctypes.POINTER(ctypes.c_size_t),
        "CUdevice": c_int,
        "CUdevice *": ctypes.POINTER(c_int),
        "CUdevice_attribute": c_int,
        "CUresult": c_int,
    }
    assert re.search(r"typedef int CUdevice(_v1)?;", text)
    assert re.search(r"#define cuDeviceTotalMem\s+cuDeviceTotalMem_v2\b", text)
    for name, prototype in CUDA_PROTOTYPES.items():
        match = re.search(rf"^CUresult CUDAAPI {name.removesuffix('_v2')}\(([^)]*)\);", text, re.MULTILINE)
        assert match, name
        declared = [re.sub(r"\w+$", "", argument.strip()).strip() for argument in match[1].split(",")]
        assert [types[argument] for argument in declared] == list(prototype), name
    for name in ("INTEGRATED", "COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR"):
        value = re.search(rf"CU_DEVICE_ATTRIBUTE_{name} = (\d+)", text)
        assert value, name
        assert int(value[1]) == getattr(device, name)


@pytest.mark.skipif(not DRIVER_STUBS, reason="no CUDA toolkit with its driver stub is installed")
def test_the_real_driver_has_every_function() -> None:
    """On the stub that programs link with; in another process, as it carries the driver's own name."""
    code = f"""
import ctypes
from mirrordepth_edge.machine.device import CUDA_PROTOTYPES, CudaDriverError, gpus_of
library = ctypes.CDLL({str(DRIVER_STUBS[0])!r})
for name in CUDA_PROTOTYPES: getattr(library, name)
try:
    gpus_of(library)
except CudaDriverError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cuInit: ")  # CUDA_ERROR_STUB_LIBRARY (34)


@pytest.mark.gpu
def test_this_machines_gpus() -> None:
    gpus = device.nvidia_gpus()
    if not gpus:
        pytest.skip(f"no NVIDIA GPU is visible: {device.cuda_driver().problem}")
    for gpu in gpus:
        assert gpu.name
        assert re.fullmatch(r"\d+\.\d", gpu.compute_capability)
        assert re.fullmatch(r"\d+\.\d", gpu.cuda)
        assert gpu.memory_mib > 1000


@pytest.mark.parametrize(
    ("text", "release"), [(R36, "36.4.3"), (R35, "35.4.1"), ("", None), ("# R36 (debug), GCID: 1", None)]
)
def test_l4t_release(text: str, release: str | None) -> None:
    assert parse_l4t_release(text) == release


def test_cpu_name() -> None:
    text = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Intel(R) Xeon(R) CPU @ 2.00GHz \nstepping\t: 3\n"
    assert device.parse_cpu_name(text * 2) == "Intel(R) Xeon(R) CPU @ 2.00GHz"
    assert device.parse_cpu_name("processor\t: 0\nCPU implementer\t: 0x41\n") is None


@pytest.mark.parametrize(
    ("text", "has_it"),
    [
        ("  Video I/O:\n    FFMPEG:                      YES\n    GStreamer:                   YES (1.20.3)\n", True),
        ("  Video I/O:\n    FFMPEG:                      YES\n    GStreamer:                   NO\n", False),
        ("    GStreamer:                   \n      base:                      YES (ver 1.8.3)\n", False),
        ("    YES GStreamer: YES\n", False),
        ("", False),
    ],
)
def test_gstreamer(text: str, has_it: bool) -> None:
    assert device.parse_gstreamer(text) is has_it


def test_a_jetson(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare_machine / "JETSON_MODEL").write_bytes(ORIN_NANO.encode() + b"\0")
    (bare_machine / "L4T_RELEASE").write_text(R36, encoding="utf-8")
    use_driver(monkeypatch, fake_driver((ORIN,)))
    machine = device.machine()
    assert (machine.jetson, machine.l4t) == (ORIN_NANO, "36.4.3")
    assert machine.gpus == (ORIN,)


def test_a_jetson_without_its_driver_has_no_gpu(bare_machine: Path) -> None:
    (bare_machine / "JETSON_MODEL").write_bytes(ORIN_NANO.encode() + b"\0")
    machine = device.machine()
    assert (machine.jetson, machine.gpus) == (ORIN_NANO, ())


def test_another_arm_board_is_no_jetson(bare_machine: Path) -> None:
    (bare_machine / "JETSON_MODEL").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    machine = device.machine()
    assert (machine.jetson, machine.l4t, machine.gpus) == (None, None, ())
    assert machine.cpu
    assert machine.cores >= 1


def test_this_machine_describes_itself() -> None:
    machine = device.machine()
    assert machine.cores <= (os.cpu_count() or 1)
    assert machine.python == sys.version.split()[0]
    assert machine.cpu
    assert (machine.gpus == ()) == (device.cuda_driver().problem is not None)
