"""What `mde doctor` knows of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirrordepth_edge.backends.base import Probe
    from mirrordepth_edge.machine.device import Machine
    from mirrordepth_edge.machine.system import Environment, Python, Unknown
    from mirrordepth_edge.sources.v4l2 import CameraInfo


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that doctor found."""

    machine: Machine
    gpu_problem: str | None
    environment: Environment
    python: Python
    probes: dict[str, Probe]
    packages: dict[str, str]
    onnxruntime_problem: str | None
    """Why ONNX Runtime leaves the GPU alone, where there is one."""
    opencv: str
    cameras: list[CameraInfo]
    cache_free_mib: int | Unknown

    @property
    def is_jetson(self) -> bool:
        """Whether it runs Jetson Linux; boards of other makers need not be called Jetson."""
        return bool(self.machine.jetson or self.machine.l4t)
