"""The software and the state of this machine: JetPack, CUDA, driver, power mode, clocks, memory, Python, TensorRT.

Parsers take text, so that tests need no such machine, and `read_environment` reads any root folder. Unknown values are
`Unavailable` with the reason.

Sources of the formats: proc(5) for `/proc/meminfo` and `/proc/swaps` (KiB), PEP 405 for `pyvenv.cfg`, deb-control(5)
for `/var/lib/dpkg/status`, the kernel's admin-guide/pm/cpufreq for `scaling_governor`; `jetson.py` for a Jetson's own.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mirrordepth_edge.machine.driver import read_kernel_driver
from mirrordepth_edge.machine.jetson import (
    Clock,
    PowerMode,
    RunCommand,
    jetpack_of,
    parse_l4t_release,
    read_clocks,
    read_power_mode,
    read_power_modes,
    run_command,
)
from mirrordepth_edge.machine.text_files import ROOT, read_line, read_parsed
from mirrordepth_edge.machine.unavailable import Unavailable

TENSORRT_PACKAGES = ("libnvinfer11", "libnvinfer10", "libnvinfer8")
ADD_SWAP = (
    "sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile"
)
"""Command that adds 8 GiB of swap until the next boot."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Main memory and swap, in MiB."""

    total_mib: int
    available_mib: int
    """Memory that a program can use without swapping."""
    swap_mib: int


@dataclass(frozen=True, kw_only=True)
class Swap:
    """A swap area."""

    name: str
    kind: str
    """`zram` (compressed memory), `file` or `partition`."""
    size_mib: int
    used_mib: int


@dataclass(frozen=True, kw_only=True)
class SystemTensorRt:
    """TensorRT's Python bindings from Debian packages, as in JetPack."""

    folder: str
    python: str
    """The only Python version that can import them, such as "3.10"."""


@dataclass(frozen=True, kw_only=True)
class Python:
    """The Python interpreter that runs this program."""

    version: str
    abi: str
    """As in the names of wheels, such as "cp310"."""
    venv: bool
    system_packages: bool
    """It sees the packages of the system's Python, where JetPack installs TensorRT."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The software and the state of a machine, read from its files."""

    jetpack: str | Unavailable
    """Such as "6.2"; "6.2.1 or newer" for a Jetson Linux release that is newer than the known ones."""
    jetpack_package: str | Unavailable
    """Version of the package nvidia-jetpack, such as "6.2+b77"."""
    tensorrt_package: str | Unavailable
    """Version of TensorRT's Debian package, such as "10.3.0.30-1+cuda12.5"."""
    cuda_toolkit: str | Unavailable
    driver: str | Unavailable
    """Version of NVIDIA's kernel module."""
    power_mode: PowerMode | Unavailable
    power_modes: tuple[PowerMode, ...]
    clocks: tuple[Clock, ...]
    governor: str | Unavailable
    """cpufreq governor; comma-separated if the cores differ."""
    memory: Memory | Unavailable
    swaps: tuple[Swap, ...]
    system_tensorrt: tuple[SystemTensorRt, ...]
    gpu_on_pci: bool
    """An NVIDIA GPU is on the PCI bus, with or without a driver."""


def parse_package_version(status: str, package: str) -> str | None:
    """Version of an installed package in `/var/lib/dpkg/status`."""
    fields = r"(?:.+\n)*?"  # of the same package: a blank line ends it
    installed = rf"^Package: {re.escape(package)}\n{fields}Status: install ok installed\n{fields}Version: (\S+)$"
    match = re.search(installed, status, re.MULTILINE)
    return match[1] if match else None


def parse_cuda_toolkit(text: str) -> str | None:
    """Version of the CUDA toolkit in its `version.json`."""
    try:
        return str(json.loads(text)["cuda"]["version"])
    except (ValueError, LookupError, TypeError):
        return None


def parse_memory(text: str) -> Memory | None:
    """`/proc/meminfo`."""
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    if not {"MemTotal", "MemAvailable"} <= set(kib):
        return None
    return Memory(
        total_mib=kib["MemTotal"] // 1024,
        available_mib=kib["MemAvailable"] // 1024,
        swap_mib=kib.get("SwapTotal", 0) // 1024,
    )


def parse_swaps(text: str) -> tuple[Swap, ...]:
    """`/proc/swaps`."""
    rows = re.findall(r"^(/\S+)\s+(\w+)\s+(\d+)\s+(\d+)\s+-?\d+$", text, re.MULTILINE)
    return tuple(
        Swap(
            name=name,
            kind="zram" if Path(name).name.startswith("zram") else kind,
            size_mib=int(size) // 1024,
            used_mib=int(used) // 1024,
        )
        for name, kind, size, used in rows
    )


def parse_venv(text: str) -> bool | None:
    """Whether the venv of a `pyvenv.cfg` includes the system's site-packages."""
    match = re.search(r"^include-system-site-packages\s*=\s*(true|false)\s*$", text, re.MULTILINE | re.IGNORECASE)
    return match[1].lower() == "true" if match else None


def this_python() -> Python:
    """Describe the running Python interpreter."""
    venv, major, minor = sys.prefix != sys.base_prefix, *sys.version_info[:2]
    included = read_parsed(Path(sys.prefix) / "pyvenv.cfg", parse_venv) if venv else True
    return Python(
        version=".".join(str(part) for part in sys.version_info[:3]),
        abi=f"cp{major}{minor}{getattr(sys, 'abiflags', '')}",
        venv=venv,
        system_packages=included is True and sys.base_prefix == "/usr",
    )


def disk_free_mib(folder: Path) -> int | Unavailable:
    """Free space, in MiB, on the disk of a folder that need not exist yet."""
    existing = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    try:
        return shutil.disk_usage(existing).free // 2**20
    except OSError as error:
        return Unavailable(reason=f"{existing}: {error.strerror or error}")


def read_governor(root: Path = ROOT) -> str | Unavailable:
    """cpufreq governor of the CPU; comma-separated, in alphabetical order, if the cores differ."""
    files = root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    names = {read_line(file) for file in files} - {""}
    return ", ".join(sorted(names)) or Unavailable(reason="no cpufreq in /sys")


def read_environment(root: Path = ROOT, run: RunCommand = run_command) -> Environment:
    """Read the environment of a machine; never raises.

    Args:
        root: folder that holds `proc`, `sys`, `etc`, `usr` and `var`.
        run: runs `nvpmodel` and `jetson_clocks`.
    """
    packages = read_parsed(root / "var/lib/dpkg/status", str)
    jetpack_package = _package_version(packages, ("nvidia-jetpack",))
    swaps = read_parsed(root / "proc/swaps", parse_swaps)
    return Environment(
        jetpack=_jetpack(root, jetpack_package),
        jetpack_package=jetpack_package,
        tensorrt_package=_package_version(packages, TENSORRT_PACKAGES),
        cuda_toolkit=read_parsed(root / "usr/local/cuda/version.json", parse_cuda_toolkit),
        driver=read_kernel_driver(root),
        power_mode=read_power_mode(root, run),
        power_modes=read_power_modes(root),
        clocks=read_clocks(root, run),
        governor=read_governor(root),
        memory=read_parsed(root / "proc/meminfo", parse_memory),
        swaps=() if isinstance(swaps, Unavailable) else swaps,
        system_tensorrt=tuple(
            SystemTensorRt(folder=str(path.parent), python=path.parts[-4].removeprefix("python"))
            for path in sorted(root.glob("usr/lib/python3.*/dist-packages/tensorrt/__init__.py"))
        ),
        gpu_on_pci=any(
            read_line(vendor) == "0x10de" and read_line(vendor.with_name("class")).startswith("0x03")
            for vendor in root.glob("sys/bus/pci/devices/*/vendor")
        ),
    )


def _package_version(packages: str | Unavailable, names: Sequence[str]) -> str | Unavailable:
    if isinstance(packages, Unavailable):
        return packages
    versions = (parse_package_version(packages, name) for name in names)
    not_installed = Unavailable(reason=f"{' or '.join(names)} is not installed")
    return next((version for version in versions if version), not_installed)


def _jetpack(root: Path, package: str | Unavailable) -> str | Unavailable:
    if isinstance(package, str):
        return re.split(r"[+-]", package)[0]  # the rest is the build number
    l4t = read_parsed(root / "etc/nv_tegra_release", parse_l4t_release)
    if isinstance(l4t, Unavailable):
        return l4t
    return jetpack_of(l4t) or Unavailable(reason=f"no JetPack release is known for Jetson Linux {l4t}")
