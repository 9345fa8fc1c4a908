"""`mde doctor`: what is here, what is wrong, what to type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mirrordepth_edge.commands.doctor.facts import Facts
    from mirrordepth_edge.machine.system import Unknown
    from mirrordepth_edge.sources.v4l2 import CameraInfo


def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON for a bug report.")] = False,
) -> None:
    """Show what works here, what is wrong, and what to type.

    This machine, the backends that work on it, versions that are known to go wrong together, and what to do, the most
    important first.
    """
    import json

    from mirrordepth_edge import __version__
    from mirrordepth_edge.commands.doctor import view as doctor_view
    from mirrordepth_edge.commands.doctor.checks import to_do
    from mirrordepth_edge.commands.terminal import console

    facts = find_facts()
    if json_output:
        console.print_json(json.dumps(report(facts)))
        return
    here = facts.machine
    console.print(f"mirrordepth-edge {__version__} on Python {here.python}, {here.system}", style="bold")
    doctor_view.print_machine(facts)
    doctor_view.print_backends(facts)
    doctor_view.print_packages(facts.packages, here.architecture)
    doctor_view.print_to_do(to_do(facts))


def find_facts() -> Facts:
    """Ask the machine, its backends and its packages."""
    from mirrordepth_edge.backends import onnxruntime, registry
    from mirrordepth_edge.backends.base import Available
    from mirrordepth_edge.commands.doctor.facts import Facts
    from mirrordepth_edge.machine import device
    from mirrordepth_edge.machine import system as environment

    here, probes = device.machine(), registry.probe_all()
    on_cpu = here.gpus and isinstance(probes.get("onnxruntime"), Available)
    return Facts(
        machine=here,
        gpu_problem=device.cuda_driver().problem,
        environment=environment.read_environment(),
        python=environment.this_python(),
        probes=probes,
        packages=installed_packages(),
        onnxruntime_problem=onnxruntime.cuda_problem() if on_cpu else None,
        opencv=opencv_build(),
        cameras=cameras(),
        cache_free_mib=cache_free_mib(),
    )


def report(facts: Facts) -> dict[str, object]:
    """All of it as plain values; what is unknown has a `reason`."""
    from dataclasses import asdict

    from mirrordepth_edge import __version__
    from mirrordepth_edge.backends.base import Available
    from mirrordepth_edge.commands.doctor.checks import to_do

    free = facts.cache_free_mib
    return {
        "mirrordepth_edge": __version__,
        "machine": asdict(facts.machine),
        "gpu_problem": facts.gpu_problem,
        "opencv": facts.opencv,
        "backends": {name: {"available": isinstance(p, Available), **asdict(p)} for name, p in facts.probes.items()},
        "packages": facts.packages,
        "environment": asdict(facts.environment),
        "python": asdict(facts.python),
        "cameras": [asdict(camera) for camera in facts.cameras],
        "cache_free_mib": free if isinstance(free, int) else asdict(free),
        "to_do": [asdict(each) for each in to_do(facts)],
    }


def opencv_build() -> str:
    """OpenCV's version, and whether it can open cameras that need GStreamer; or why it does not import."""
    from mirrordepth_edge.machine.device import parse_gstreamer

    try:
        import cv2

        version, build_information = cv2.__version__, cv2.getBuildInformation()
    except Exception as error:  # such as libGL, which is not there
        return f"does not import: {error}"
    if parse_gstreamer(build_information):
        return f"{version} with GStreamer"
    return f"{version} without GStreamer, which CSI cameras need and pip's wheel lacks; USB cameras work"


def installed_packages() -> dict[str, str]:
    """Versions of the packages that matter, where installed."""
    from mirrordepth_edge.commands.doctor.view import PACKAGES
    from mirrordepth_edge.machine.device import installed_versions

    return installed_versions(name for name, _ in PACKAGES)


def cameras() -> list[CameraInfo]:
    """The cameras here; none where the system does not tell."""
    from mirrordepth_edge.errors import MissingError
    from mirrordepth_edge.sources.v4l2 import list_cameras

    try:
        return list_cameras()
    except MissingError:
        return []


def cache_free_mib() -> int | Unknown:
    """Disk that caches may fill."""
    from mirrordepth_edge.machine.system import disk_free_mib
    from mirrordepth_edge.support.cache import user_cache

    return disk_free_mib(user_cache())
