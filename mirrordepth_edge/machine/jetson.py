"""JetPack, power mode and clocks of a Jetson.

Sources of the formats:

- `/etc/nv_tegra_release`, `nvpmodel`, `/etc/nvpmodel.conf`, `jetson_clocks`: Jetson Linux Developer Guide, Platform
  Power and Performance.
- `/var/lib/nvpmodel/status`: `pmode:0002 fmode:quiet`, which nvpmodel writes, and reads at boot.
- `devfreq/*/{min,max}_freq` (Hz): the kernel's ABI/testing/sysfs-class-devfreq. The GPU is `17000000.gpu`
  (JetPack 6), `17000000.ga10b` (JetPack 5) or `gpu-gpc-0` (Thor).
- `cpufreq/scaling_{min,max}_freq` (kHz): the kernel's admin-guide/pm/cpufreq.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mirrordepth_edge.machine.text_files import ROOT, read_line, read_parsed
from mirrordepth_edge.machine.unavailable import Unavailable

RunCommand = Callable[[Sequence[str]], str]
"""Runs a command and returns its output; raises OSError, ValueError or subprocess.SubprocessError."""

COMMAND_TIMEOUT_S = 1.0
NVPMODEL, JETSON_CLOCKS = ("nvpmodel", "-q"), ("/usr/bin/jetson_clocks", "--show")
MAXN = "MAXN"

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
class PowerMode:
    """A power mode of nvpmodel."""

    number: int
    name: str
    """Such as "25W" or "MAXN_SUPER"."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The frequency range of a clock."""

    name: str
    """`CPU` (all cores that are online), `GPU` or `EMC` (memory)."""
    low_mhz: float
    high_mhz: float
    locked: bool
    """Fixed at `high_mhz`, as by `jetson_clocks`."""


def is_maxn(name: str) -> bool:
    """Whether nvpmodel's mode of this name has no power limit: `MAXN`, `MAXN_SUPER`."""
    return name.startswith(MAXN)


def parse_l4t_release(text: str) -> str | None:
    """Release in `/etc/nv_tegra_release`: `# R36 (release), REVISION: 4.3, …` is "36.4.3"."""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{match[1]}.{match[2]}" if match else None


def jetpack_of(l4t: str) -> str | None:
    """JetPack version of a Jetson Linux release such as "36.4.3"; None if its series is unknown."""
    release = tuple(int(part) for part in l4t.split("."))
    release = (*release, *(0,) * (3 - len(release)))
    if release in JETPACKS:
        return JETPACKS[release]
    older = [known for known in JETPACKS if known[:2] == release[:2] and known < release]
    if older:
        return f"{JETPACKS[max(older)]} or newer"
    series = {name.split(".")[0] for known, name in JETPACKS.items() if known[0] == release[0]}
    return f"{series.pop()}.x" if series else None


def parse_power_modes(text: str) -> tuple[PowerMode, ...]:
    """The modes of `/etc/nvpmodel.conf`: `< POWER_MODEL ID=2 NAME=MAXN_SUPER >`."""
    matches = re.findall(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text, re.MULTILINE)
    return tuple(PowerMode(number=int(number), name=name) for number, name in matches)


def parse_power_status(text: str) -> int | None:
    """The number of the mode in `/var/lib/nvpmodel/status`: `pmode:0002 fmode:quiet`."""
    match = re.search(r"\bpmode:(\d+)", text)
    return int(match[1]) if match else None


def parse_nvpmodel(text: str) -> PowerMode | None:
    """The mode in the output of `nvpmodel -q`: `NV Power Mode: 25W`, with its number on the next line."""
    match = re.search(r"NV Power Mode:[ \t]*(\S+)[ \t]*\n\s*(\d+)\b", text)
    return PowerMode(number=int(match[2]), name=match[1]) if match else None


def fastest(modes: Sequence[PowerMode]) -> PowerMode | None:
    """The mode with the highest clocks: MAXN_SUPER or MAXN, else the one with the most watts; None if no name tells.

    Numbers do not tell: mode 0 is MAXN_SUPER on an Orin NX and 15W on an Orin Nano.
    """
    maxn = [mode for mode in modes if is_maxn(mode.name)]
    if maxn:
        return max(maxn, key=lambda mode: len(mode.name))
    watts = {mode: int(match[1]) for mode in modes if (match := re.search(r"(\d+)W", mode.name))}
    return max(watts, key=lambda mode: watts[mode], default=None)


def fix_clocks_command(root: Path = ROOT) -> str:
    """The shell command that selects this Jetson's fastest power mode, if it is known, and locks all clocks."""
    mode = fastest(read_power_modes(root))
    return (f"sudo nvpmodel -m {mode.number} && " if mode else "") + "sudo jetson_clocks"


def run_command(command: Sequence[str]) -> str:
    """Run `NVPMODEL` or `JETSON_CLOCKS` and return its output.

    Raises:
        OSError: the command does not exist.
        ValueError: it failed, or must not be run as this user.
        subprocess.TimeoutExpired: it took more than a second.
    """
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    # As root, nvpmodel would write its status file; jetson_clocks works for root only.
    if root != (tuple(command) == JETSON_CLOCKS):
        raise ValueError(f"{command[0]} is {'not ' if root else ''}run as root{'' if root else ' only'}")
    done = subprocess.run(
        list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise ValueError(f"{command[0]} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def read_power_modes(root: Path = ROOT) -> tuple[PowerMode, ...]:
    """The power modes that this Jetson has; empty elsewhere."""
    modes = read_parsed(root / "etc/nvpmodel.conf", parse_power_modes)
    return () if isinstance(modes, Unavailable) else modes


def read_power_mode(root: Path = ROOT, run: RunCommand = run_command) -> PowerMode | Unavailable:
    """The power mode in use, from nvpmodel's status file, else from `nvpmodel -q`."""
    number = read_parsed(root / "var/lib/nvpmodel/status", parse_power_status)
    mode = next((mode for mode in read_power_modes(root) if mode.number == number), None)
    if mode is not None:
        return mode
    try:
        return parse_nvpmodel(run(NVPMODEL)) or Unavailable(reason="nvpmodel -q reports no power mode")
    except FileNotFoundError:
        return Unavailable(reason="nvpmodel is not installed")
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Unavailable(reason=f"nvpmodel -q: {error}")


def read_clocks(root: Path = ROOT, run: RunCommand = run_command) -> tuple[Clock, ...]:
    """CPU and GPU clocks, and the memory clock if run as root on a Jetson; empty if the system reports none."""
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        if clocks := parse_jetson_clocks(run(JETSON_CLOCKS)):
            return clocks
    # The kernel's files, which any user can read, have no memory clock.
    cores = root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq")
    gpus = (*root.glob("sys/class/devfreq/*gpu*"), *root.glob("sys/class/devfreq/*.g[av]1[01]b"))
    ranges = {
        "CPU": [_read_range(core, "scaling_{}_freq", 1e-3) for core in cores],
        "GPU": [_read_range(gpu, "{}_freq", 1e-6) for gpu in sorted(gpus)[:1]],  # Thor's second is the video decoder
    }
    readable = {name: [bounds for bounds in all_bounds if bounds] for name, all_bounds in ranges.items()}
    return tuple(_clock(name, bounds) for name, bounds in readable.items() if bounds)


def parse_jetson_clocks(text: str) -> tuple[Clock, ...]:
    """CPU, GPU and memory clocks in the output of `jetson_clocks --show`; offline cores are left out."""
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
    clocks = (_clock(kind, bounds) for kind, bounds in ranges.items())
    # An override locks the memory clock; its lower bound does not change.
    return tuple(replace(clock, locked=True) if clock.name == "EMC" and override else clock for clock in clocks)


def _read_range(folder: Path, name: str, scale: float) -> tuple[float, float] | None:
    low, high = (read_line(folder / name.format(end)) for end in ("min", "max"))
    return (int(low) * scale, int(high) * scale) if low.isdigit() and high.isdigit() else None


def _clock(name: str, ranges: Sequence[tuple[float, float]]) -> Clock:
    return Clock(
        name=name,
        low_mhz=min(low for low, _ in ranges),
        high_mhz=max(high for _, high in ranges),
        locked=all(low == high for low, high in ranges),
    )
