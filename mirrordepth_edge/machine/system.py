"""What a machine says of itself beyond its GPU: JetPack, CUDA, power mode, clocks, memory, Python, TensorRT's place.

Parsers take text, so that they are tested without the machine, and `read_environment` reads any root. What cannot be
found out is `Unknown` with the reason, never a guess.

Where the files are described:

- `/etc/nv_tegra_release`, `nvpmodel`, `/etc/nvpmodel.conf`, `jetson_clocks`, zram: Jetson Linux Developer Guide,
  Platform Power and Performance, and Kernel Customization.
- `/var/lib/nvpmodel/status`: `pmode:0002 fmode:quiet`, which nvpmodel itself writes and reads at boot.
- `devfreq/*/{min,max}_freq` (Hz): the kernel's ABI/testing/sysfs-class-devfreq. The GPU is `17000000.gpu`
  (JetPack 6), `17000000.ga10b` (JetPack 5) or `gpu-gpc-0` (Thor).
- `cpufreq/scaling_*` (kHz): the kernel's admin-guide/pm/cpufreq.
- `/proc/meminfo`, `/proc/swaps` (KiB): proc(5). `pyvenv.cfg`: PEP 405. `/var/lib/dpkg/status`: deb-control(5).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mirrordepth_edge.machine.device import parse_l4t_release

T = TypeVar("T")
Run = Callable[[Sequence[str]], str]
"""Runs a command and gives what it prints; raises OSError, ValueError or subprocess.SubprocessError."""

ROOT = Path("/")
COMMAND_S = 1.0
NVPMODEL, JETSON_CLOCKS = ("nvpmodel", "-q"), ("/usr/bin/jetson_clocks", "--show")
MAXN = "MAXN"
TENSORRT_PACKAGES = ("libnvinfer11", "libnvinfer10", "libnvinfer8")

# https://developer.nvidia.com/embedded/jetpack-archive, and the pages of its releases.
JETPACKS = {
    (35, 1, 0): "5.0.2",
    (35, 2, 1): "5.1",
    (35, 3, 1): "5.1.1",
    (35, 4, 1): "5.1.2",
    (35, 5, 0): "5.1.3",
    (35, 6, 0): "5.1.4",
    (35, 6, 1): "5.1.5",
    (36, 3, 0): "6.0",
    (36, 4, 0): "6.1",
    (36, 4, 3): "6.2",
    (36, 4, 4): "6.2.1",
    (36, 5, 0): "6.2.2",
    (36, 5, 2): "6.2.3",
    (38, 2, 0): "7.0",
    (38, 4, 0): "7.1",
    (39, 2, 0): "7.2",
    (39, 2, 1): "7.2.1",
}


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """What could not be found out, and why."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class PowerMode:
    """One of nvpmodel's modes."""

    number: int
    name: str
    """Such as "25W" or "MAXN_SUPER"."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Between which frequencies a clock may move."""

    name: str
    """`CPU` (all cores that are online), `GPU` or `EMC` (memory)."""
    low_mhz: float
    high_mhz: float
    locked: bool
    """It stays at `high_mhz`, as `jetson_clocks` leaves it."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Sizes in MiB."""

    total_mib: int
    available_mib: int
    """What a program can have without swapping."""
    swap_mib: int


@dataclass(frozen=True, kw_only=True)
class Swap:
    """One place that memory is swapped to."""

    name: str
    kind: str
    """`zram` (compressed memory), `file` or `partition`."""
    size_mib: int
    used_mib: int


@dataclass(frozen=True, kw_only=True)
class SystemTensorRt:
    """TensorRT's Python bindings as Debian packages install them, which JetPack's are."""

    folder: str
    python: str
    """The one Python that they are made for, such as "3.10"."""


@dataclass(frozen=True, kw_only=True)
class Python:
    """The Python that runs this."""

    version: str
    abi: str
    """As in the names of wheels, such as "cp310"."""
    venv: bool
    system_packages: bool
    """It sees the packages of the system's Python, where JetPack puts TensorRT."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the files of a machine say."""

    jetpack: str | Unknown
    """Such as "6.2"; "6.2.1 or newer" for a Jetson Linux that is newer than any JetPack known here."""
    jetpack_package: str | Unknown
    """Version of the package nvidia-jetpack, such as "6.2+b77"."""
    tensorrt_package: str | Unknown
    """Version of TensorRT's Debian package, such as "10.3.0.30-1+cuda12.5"."""
    cuda_toolkit: str | Unknown
    driver: str | Unknown
    """Version of NVIDIA's kernel driver."""
    power_mode: PowerMode | Unknown
    power_modes: tuple[PowerMode, ...]
    clocks: tuple[Clock, ...]
    governor: str | Unknown
    """cpufreq's governor; several, where the cores differ, with commas."""
    memory: Memory | Unknown
    swaps: tuple[Swap, ...]
    system_tensorrt: tuple[SystemTensorRt, ...]
    gpu_on_pci: bool
    """An NVIDIA GPU is plugged in, whether or not a driver serves it."""


def jetpack_of(l4t: str) -> str | None:
    """JetPack of a Jetson Linux release such as "36.4.3"; None where that is not even known by its series."""
    release = tuple(int(part) for part in l4t.split("."))
    release = (*release, *(0,) * (3 - len(release)))
    if release in JETPACKS:
        return JETPACKS[release]
    older = [known for known in JETPACKS if known[:2] == release[:2] and known < release]
    if older:
        return f"{JETPACKS[max(older)]} or newer"
    series = {name.split(".")[0] for known, name in JETPACKS.items() if known[0] == release[0]}
    return f"{series.pop()}.x" if series else None


def parse_package_version(status: str, package: str) -> str | None:
    """Version of an installed package in `/var/lib/dpkg/status`."""
    fields = r"(?:.+\n)*?"  # of the same package: a blank line ends it
    installed = rf"^Package: {re.escape(package)}\n{fields}Status: install ok installed\n{fields}Version: (\S+)$"
    found = re.search(installed, status, re.MULTILINE)
    return found[1] if found else None


def parse_cuda_toolkit(text: str) -> str | None:
    """Version of the CUDA toolkit in its `version.json`."""
    try:
        return str(json.loads(text)["cuda"]["version"])
    except (ValueError, LookupError, TypeError):
        return None


def parse_driver(text: str) -> str | None:
    """Version of the kernel driver, from `/proc/driver/nvidia/version`."""
    match = re.search(r"^NVRM version: .*?\s(\d+(?:\.\d+)+)\s", text, re.MULTILINE)
    return match[1] if match else None


def parse_power_modes(text: str) -> tuple[PowerMode, ...]:
    """The modes of `/etc/nvpmodel.conf`: `< POWER_MODEL ID=2 NAME=MAXN_SUPER >`."""
    found = re.findall(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text, re.MULTILINE)
    return tuple(PowerMode(number=int(number), name=name) for number, name in found)


def parse_power_status(text: str) -> int | None:
    """The mode's number in `/var/lib/nvpmodel/status`: `pmode:0002 fmode:quiet`."""
    match = re.search(r"\bpmode:(\d+)", text)
    return int(match[1]) if match else None


def parse_nvpmodel(text: str) -> PowerMode | None:
    """The mode in what `nvpmodel -q` prints: `NV Power Mode: 25W`, and its number on the next line."""
    match = re.search(r"NV Power Mode:[ \t]*(\S+)[ \t]*\n\s*(\d+)\b", text)
    return PowerMode(number=int(match[2]), name=match[1]) if match else None


def fastest(modes: Sequence[PowerMode]) -> PowerMode | None:
    """The mode that holds clocks down least: MAXN_SUPER or MAXN, else that of the most watts; None where none tells.

    Its number says nothing: mode 0 is MAXN_SUPER on an Orin NX and 15W on an Orin Nano.
    """

    watts = {mode: int(found[1]) for mode in modes if (found := re.search(r"(\d+)W", mode.name))}
    unbounded = [mode for mode in modes if mode.name.startswith(MAXN)]
    if unbounded:
        return max(unbounded, key=lambda mode: len(mode.name))
    return max(watts, key=lambda mode: watts[mode], default=None)


def parse_jetson_clocks(text: str) -> tuple[Clock, ...]:
    """What `jetson_clocks --show` prints of CPU, GPU and memory; cores that are offline are left out."""
    line = re.compile(
        r"^(cpu\d+|GPU|gpu-gpc-\d+|EMC):?\s+(?:Online=(\d) )?(?:Governor=\S+ )?MinFreq=(\d+) MaxFreq=(\d+)"
        r"(?: CurrentFreq=\d+)?(?:.*?FreqOverride=(\d))?",
        re.MULTILINE,
    )
    ranges: dict[str, list[tuple[float, float]]] = {}
    override = False
    for name, online, low, high, forced in line.findall(text):
        kind = "CPU" if name.startswith("cpu") else "EMC" if name == "EMC" else "GPU"
        if online != "0":
            scale = 1e-3 if kind == "CPU" else 1e-6
            ranges.setdefault(kind, []).append((int(low) * scale, int(high) * scale))
        override |= forced == "1"
    clocks = (_clock(kind, found) for kind, found in ranges.items())
    # Memory is held by an override, its lower bound stays where it is.
    return tuple(Clock(**{**vars(c), "locked": True}) if c.name == "EMC" and override else c for c in clocks)


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
    found = re.findall(r"^(/\S+)\s+(\w+)\s+(\d+)\s+(\d+)\s+-?\d+$", text, re.MULTILINE)
    return tuple(
        Swap(
            name=name,
            kind="zram" if Path(name).name.startswith("zram") else kind,
            size_mib=int(size) // 1024,
            used_mib=int(used) // 1024,
        )
        for name, kind, size, used in found
    )


def parse_venv(text: str) -> bool | None:
    """Whether the venv of a `pyvenv.cfg` sees the packages of the Python that made it."""
    match = re.search(r"^include-system-site-packages\s*=\s*(true|false)\s*$", text, re.MULTILINE | re.IGNORECASE)
    return match[1].lower() == "true" if match else None


def this_python() -> Python:
    """The Python that runs this."""
    venv, major, minor = sys.prefix != sys.base_prefix, *sys.version_info[:2]
    included = _read(Path(sys.prefix) / "pyvenv.cfg", parse_venv) if venv else True
    return Python(
        version=".".join(str(part) for part in sys.version_info[:3]),
        abi=f"cp{major}{minor}{getattr(sys, 'abiflags', '')}",
        venv=venv,
        system_packages=included is True and sys.base_prefix == "/usr",
    )


def disk_free_mib(folder: Path) -> int | Unknown:
    """Space that this user can fill where `folder` is or will be."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    try:
        return shutil.disk_usage(there).free // 2**20
    except OSError as error:
        return Unknown(reason=f"{there}: {error.strerror or error}")


def run_command(command: Sequence[str]) -> str:
    """What a command prints, within a second.

    nvpmodel is not run as root, as whom it writes its status; jetson_clocks answers root alone.

    Raises:
        OSError: it is not there.
        ValueError: it failed, or is not run as this user.
        subprocess.TimeoutExpired: it took too long.
    """
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root != (tuple(command) == JETSON_CLOCKS):
        raise ValueError(f"{command[0]} is {'not ' if root else ''}run as root{'' if root else ' only'}")
    done = subprocess.run(
        list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_S, check=False
    )
    if done.returncode != 0:
        raise ValueError(f"{command[0]} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def read_environment(root: Path = ROOT, run: Run = run_command) -> Environment:
    """Read what the files under `root` say; never raises.

    Args:
        root: folder that holds `proc`, `sys`, `etc`, `usr` and `var`.
        run: asked for what no file says.
    """
    packages = _read(root / "var/lib/dpkg/status", str)
    jetpack_package = _package(packages, ("nvidia-jetpack",))
    power_modes = _read(root / "etc/nvpmodel.conf", parse_power_modes)
    modes = () if isinstance(power_modes, Unknown) else power_modes
    swaps = _read(root / "proc/swaps", parse_swaps)
    return Environment(
        jetpack=_jetpack(root, jetpack_package),
        jetpack_package=jetpack_package,
        tensorrt_package=_package(packages, TENSORRT_PACKAGES),
        cuda_toolkit=_read(root / "usr/local/cuda/version.json", parse_cuda_toolkit),
        driver=_read(root / "proc/driver/nvidia/version", parse_driver),
        power_mode=_power_mode(root, modes, run),
        power_modes=modes,
        clocks=_clocks(root, run),
        governor=_governor(root),
        memory=_read(root / "proc/meminfo", parse_memory),
        swaps=() if isinstance(swaps, Unknown) else swaps,
        system_tensorrt=tuple(
            SystemTensorRt(folder=str(path.parent), python=path.parts[-4].removeprefix("python"))
            for path in sorted(root.glob("usr/lib/python3.*/dist-packages/tensorrt/__init__.py"))
        ),
        gpu_on_pci=any(
            _line(vendor) == "0x10de" and _line(vendor.with_name("class")).startswith("0x03")
            for vendor in root.glob("sys/bus/pci/devices/*/vendor")
        ),
    )


def _read(path: Path, parse: Callable[[str], T | None]) -> T | Unknown:
    try:
        found = parse(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        return Unknown(reason=f"{path}: {error.strerror or error}")
    return Unknown(reason=f"{path} does not say") if found is None else found


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _package(packages: str | Unknown, names: Sequence[str]) -> str | Unknown:
    if isinstance(packages, Unknown):
        return packages
    found = (parse_package_version(packages, name) for name in names)
    return next((version for version in found if version), Unknown(reason=f"{' or '.join(names)} is not installed"))


def _jetpack(root: Path, package: str | Unknown) -> str | Unknown:
    if isinstance(package, str):
        return re.split(r"[+-]", package)[0]  # the rest numbers the build
    l4t = _read(root / "etc/nv_tegra_release", parse_l4t_release)
    if isinstance(l4t, Unknown):
        return l4t
    return jetpack_of(l4t) or Unknown(reason=f"Jetson Linux {l4t} belongs to no JetPack that is known here")


def _power_mode(root: Path, modes: Sequence[PowerMode], run: Run) -> PowerMode | Unknown:
    number = _read(root / "var/lib/nvpmodel/status", parse_power_status)
    named = next((mode for mode in modes if mode.number == number), None)
    if named is not None:
        return named
    try:
        return parse_nvpmodel(run(NVPMODEL)) or Unknown(reason="nvpmodel -q names no mode")
    except FileNotFoundError:
        return Unknown(reason="there is no nvpmodel")
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Unknown(reason=f"nvpmodel -q: {error}")


def _clocks(root: Path, run: Run) -> tuple[Clock, ...]:
    # Not root, or no Jetson: the kernel's own files, which keep the memory's clock to themselves.
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        if shown := parse_jetson_clocks(run(JETSON_CLOCKS)):
            return shown
    cores = root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq")
    gpus = (*root.glob("sys/class/devfreq/*gpu*"), *root.glob("sys/class/devfreq/*.g[av]1[01]b"))
    ranges = {
        "CPU": [_range(core, "scaling_{}_freq", 1e-3) for core in cores],
        "GPU": [_range(gpu, "{}_freq", 1e-6) for gpu in sorted(gpus)[:1]],  # Thor's second is the video decoder's
    }
    known = {name: [bounds for bounds in found if bounds] for name, found in ranges.items()}
    return tuple(_clock(name, found) for name, found in known.items() if found)


def _range(folder: Path, name: str, scale: float) -> tuple[float, float] | None:
    low, high = (_line(folder / name.format(end)) for end in ("min", "max"))
    return (int(low) * scale, int(high) * scale) if low.isdigit() and high.isdigit() else None


def _clock(name: str, ranges: Sequence[tuple[float, float]]) -> Clock:
    return Clock(
        name=name,
        low_mhz=min(low for low, _ in ranges),
        high_mhz=max(high for _, high in ranges),
        locked=all(low == high for low, high in ranges),
    )


def _governor(root: Path) -> str | Unknown:
    names = {_line(file) for file in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")} - {""}
    return ", ".join(sorted(names)) or Unknown(reason="no cpufreq: the system shows no governor")
