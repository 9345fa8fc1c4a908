"""Version of the NVIDIA driver: the kernel module and the CUDA version that it supports."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mirrordepth_edge.machine.device import Gpu
from mirrordepth_edge.machine.text_files import ROOT, read_parsed
from mirrordepth_edge.machine.unavailable import Unavailable
from mirrordepth_edge.support.versions import version_key

VERSION_FILE = Path("proc/driver/nvidia/version")


@dataclass(frozen=True)
class DriverVersion:
    """Such as "560.35.05, CUDA 12.6", the form that manifests store."""

    kernel: str
    """Version of the kernel module; empty if unknown, as with some Jetson releases."""
    cuda: str
    """Highest CUDA version that the driver supports; empty if unknown."""

    def __str__(self) -> str:
        return ", ".join(part for part in (self.kernel, self.cuda and f"CUDA {self.cuda}") if part)

    def older_than(self, other: DriverVersion) -> bool:
        """Whether one of the two versions is older; an unknown version is not compared."""
        pairs = ((self.kernel, other.kernel), (self.cuda, other.cuda))
        return any(version_key(own) < version_key(its) for own, its in pairs if version_key(own) and version_key(its))


def parse_driver_version(text: str) -> DriverVersion:
    """Parse what `str(DriverVersion)` wrote."""
    kernel = re.match(r"\d+(?:\.\d+)*", text)
    cuda = re.search(r"CUDA ([\d.]+)", text)
    return DriverVersion(kernel=kernel[0] if kernel else "", cuda=cuda[1] if cuda else "")


def driver_version(gpu: Gpu, root: Path = ROOT) -> DriverVersion:
    """The driver that serves a GPU of this machine."""
    kernel = read_kernel_driver(root)
    return DriverVersion(kernel="" if isinstance(kernel, Unavailable) else kernel, cuda=gpu.cuda)


def read_kernel_driver(root: Path = ROOT) -> str | Unavailable:
    """Version of NVIDIA's kernel module, such as "540.4.0"."""
    return read_parsed(root / VERSION_FILE, parse_kernel_driver)


def parse_kernel_driver(text: str) -> str | None:
    """Version of the kernel module in `/proc/driver/nvidia/version`."""
    match = re.search(r"^NVRM version: .*?\s(\d+(?:\.\d+)+)\s", text, re.MULTILINE)
    return match[1] if match else None
