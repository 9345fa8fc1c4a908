"""What this machine is. Parsers take text, so that they are tested without the machine."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

JETSON_MODEL = Path("/proc/device-tree/model")
L4T_RELEASE = Path("/etc/nv_tegra_release")
CPU_INFO = Path("/proc/cpuinfo")
# Compute capability by Jetson family: nvidia-smi knows nothing of the integrated GPU before JetPack 7.
JETSON_COMPUTE_CAPABILITY = {"orin": "8.7", "xavier": "7.2", "thor": "11.0"}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU."""

    name: str
    compute_capability: str
    """Such as "8.7"; empty where it could not be read."""
    memory_mib: int | None
    """None on a Jetson, where GPU and CPU share memory."""
    driver: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a result or a report says of where it was made."""

    system: str
    architecture: str
    python: str
    cpu: str
    cores: int
    gpus: tuple[Gpu, ...]
    jetson: str | None
    """Board name, on a Jetson."""
    l4t: str | None
    """Jetson Linux release, such as "36.4.3"."""


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """Rows of `nvidia-smi --query-gpu=name,compute_cap,memory.total,driver_version --format=csv,noheader,nounits`."""
    gpus = []
    for line in text.strip().splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 4:
            continue
        name, capability, memory, driver = fields
        gpus.append(
            Gpu(
                name=name,
                compute_capability=capability if re.fullmatch(r"\d+\.\d+", capability) else "",
                memory_mib=int(memory) if memory.isdigit() else None,
                driver=driver,
            )
        )
    return tuple(gpus)


def parse_l4t_release(text: str) -> str | None:
    """Release of `/etc/nv_tegra_release`: `# R36 (release), REVISION: 4.3, …` is "36.4.3"."""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{match[1]}.{match[2]}" if match else None


def parse_jetson_gpu(model: str) -> Gpu | None:
    """The integrated GPU of a board named as `/proc/device-tree/model` names it."""
    for family, capability in JETSON_COMPUTE_CAPABILITY.items():
        if family in model.lower():
            return Gpu(name=model, compute_capability=capability, memory_mib=None, driver="JetPack")
    return None


def parse_cpu_name(text: str) -> str | None:
    """CPU name of `/proc/cpuinfo`; absent on most Arm machines."""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else None


@cache
def nvidia_gpus() -> tuple[Gpu, ...]:
    """GPUs this process may use; empty without one. Read once."""
    jetson = parse_jetson_gpu(_jetson_model() or "")
    if jetson is not None:
        return (jetson,)
    tool = shutil.which("nvidia-smi")
    if tool is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ()
    command = [
        tool,
        "--query-gpu=name,compute_cap,memory.total,driver_version",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_nvidia_smi(done.stdout) if done.returncode == 0 else ()


def machine() -> Machine:
    """Describe this machine."""
    return Machine(
        system=platform.platform(terse=True),
        architecture=platform.machine(),
        python=platform.python_version(),
        cpu=parse_cpu_name(_read(CPU_INFO)) or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        gpus=nvidia_gpus(),
        jetson=_jetson_model(),
        l4t=parse_l4t_release(_read(L4T_RELEASE)),
    )


def _jetson_model() -> str | None:
    model = _read(JETSON_MODEL).strip("\0\n ")
    return model if "jetson" in model.lower() or "orin" in model.lower() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
