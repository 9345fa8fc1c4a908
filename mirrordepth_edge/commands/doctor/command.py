"""`mde doctor`: show this machine, its problems, and the commands that fix them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import platformdirs
import typer

from mirrordepth_edge import __version__
from mirrordepth_edge.backends import onnxruntime, registry
from mirrordepth_edge.backends.base import Available
from mirrordepth_edge.commands.doctor import view
from mirrordepth_edge.commands.doctor.checks import diagnose
from mirrordepth_edge.commands.doctor.facts import Facts, OpenCv
from mirrordepth_edge.commands.terminal import console
from mirrordepth_edge.errors import MissingError
from mirrordepth_edge.machine import device, system
from mirrordepth_edge.machine.unavailable import Unavailable, to_plain
from mirrordepth_edge.sources import v4l2

OPENCV_CURE = "sudo apt install libgl1 libglib2.0-0"


def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON for a bug report.")] = False,
) -> None:
    """Show what works on this machine, what does not, and how to fix it.

    Lists the hardware, the backends, the packages and known issues of the installed versions. Problems are sorted by
    importance.
    """
    facts = find_facts()
    if json_output:
        console.print_json(json.dumps(report(facts)))
        return
    here = facts.machine
    console.print(f"mirrordepth-edge {__version__} on Python {here.python}, {here.system}", style="bold")
    view.print_machine(facts)
    view.print_backends(facts)
    view.print_packages(facts)
    view.print_diagnoses(diagnose(facts))


def find_facts() -> Facts:
    """Query the machine, the backends and the packages."""
    here, probes = device.machine(), registry.probe_all()
    check_onnxruntime = here.gpus and isinstance(probes.get("onnxruntime"), Available)
    return Facts(
        machine=here,
        gpu_problem=device.cuda_driver().problem,
        environment=system.read_environment(),
        python=system.this_python(),
        probes=probes,
        packages=installed_packages(),
        onnxruntime_problem=onnxruntime.cuda_problem() if check_onnxruntime else None,
        opencv=find_opencv(),
        cameras=cameras(),
        cache_free_mib=system.disk_free_mib(Path(platformdirs.user_cache_dir("mirrordepth-edge"))),
    )


def report(facts: Facts) -> dict[str, object]:
    """The facts and diagnoses as plain values; an unavailable value has a `reason`."""
    free = facts.cache_free_mib
    return {
        "mirrordepth_edge": __version__,
        "machine": to_plain(facts.machine),
        "gpu_problem": facts.gpu_problem,
        "opencv": view.describe_opencv(facts.opencv),
        "backends": {
            name: {"available": isinstance(probe, Available), **to_plain(probe)} for name, probe in facts.probes.items()
        },
        "packages": facts.packages,
        "environment": to_plain(facts.environment),
        "python": to_plain(facts.python),
        "cameras": [to_plain(camera) for camera in facts.cameras],
        "cache_free_mib": free if isinstance(free, int) else to_plain(free),
        "to_do": [to_plain(diagnosis) for diagnosis in diagnose(facts)],
    }


def find_opencv() -> OpenCv | Unavailable:
    """Import OpenCV and read its build options."""
    try:
        import cv2

        return OpenCv(version=cv2.__version__, gstreamer=device.parse_gstreamer(cv2.getBuildInformation()))
    except Exception as error:  # such as a missing libGL
        return Unavailable(reason=str(error), cure=OPENCV_CURE)


def installed_packages() -> dict[str, str]:
    """Versions of the packages in `view.PACKAGES` that are installed."""
    return device.installed_versions(name for name, _ in view.PACKAGES)


def cameras() -> list[v4l2.CameraInfo]:
    """The cameras of this machine; none if the system cannot list them."""
    try:
        return v4l2.list_cameras()
    except MissingError:
        return []
