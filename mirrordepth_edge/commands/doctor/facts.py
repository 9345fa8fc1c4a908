"""The facts about a machine that `mde doctor` prints and diagnoses."""

from __future__ import annotations

from dataclasses import dataclass

from mirrordepth_edge.backends.base import Probe
from mirrordepth_edge.machine.device import Machine
from mirrordepth_edge.machine.system import Environment, Python
from mirrordepth_edge.machine.unavailable import Unavailable
from mirrordepth_edge.sources.v4l2 import CameraInfo


@dataclass(frozen=True, kw_only=True)
class OpenCv:
    """The OpenCV that Python imports."""

    version: str
    gstreamer: bool
    """Built with GStreamer, which CSI cameras need."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All facts."""

    machine: Machine
    gpu_problem: str | None
    """Why no GPU is visible; None if one is."""
    environment: Environment
    python: Python
    probes: dict[str, Probe]
    """By name of the backend."""
    packages: dict[str, str]
    """Versions of the installed Python packages in `view.PACKAGES`."""
    onnxruntime_problem: str | None
    """Why ONNX Runtime does not use the GPU; None if it does, or if there is no GPU."""
    opencv: OpenCv | Unavailable
    cameras: list[CameraInfo]
    cache_free_mib: int | Unavailable

    @property
    def is_jetson(self) -> bool:
        """Whether the machine runs Jetson Linux; boards of other makers have other names."""
        return bool(self.machine.jetson or self.machine.l4t)
