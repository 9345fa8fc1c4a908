"""`mde doctor`: what is here, what is missing, what to type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mirrordepth_edge.backends.base import Probe
    from mirrordepth_edge.device import Machine

# What each package is for, and the extra that brings it; None for the base install.
PACKAGES = (
    ("numpy", None),
    ("opencv-python", None),
    ("onnx", None),
    ("onnxruntime", None),
    ("onnxruntime-gpu", None),
    ("polygraphy", None),
    ("openvino", "openvino"),
    ("torch", "export"),
    ("open_clip_torch", "export"),
    ("onnxscript", "export"),
    ("nvidia-modelopt", "export"),
    ("tensorrt", "tensorrt"),
    ("tensorrt-rtx", "rtx"),
    ("cuda-bindings", "tensorrt"),
)
ONNX_RUNTIMES = {"onnxruntime", "onnxruntime-gpu"}
# Where pip is not the way, or not by an extra.
ARM_HINTS = {
    "tensorrt": "comes with JetPack, for a venv made with --system-site-packages",
    "tensorrt-rtx": "x86-64 only",
    "cuda-bindings": "pip install 'cuda-python>=12.6,<13' on JetPack 6, 'cuda-python>=13' on JetPack 7",
}


def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON for a bug report.")] = False,
) -> None:
    """Show what works here, and what is missing.

    This machine, the backends that work on it, and what to type for those that do not.
    """
    import json
    from dataclasses import asdict

    from mirrordepth_edge import __version__
    from mirrordepth_edge.backends.base import Available
    from mirrordepth_edge.backends.registry import probe_all
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.device import cuda_driver, machine

    here, probes, packages, opencv = machine(), probe_all(), installed_packages(), opencv_build()
    if json_output:
        backends = {name: {"available": isinstance(p, Available), **asdict(p)} for name, p in probes.items()}
        report = {
            "mirrordepth_edge": __version__,
            "machine": asdict(here),
            "gpu_problem": cuda_driver().problem,
            "opencv": opencv,
            "backends": backends,
            "packages": packages,
        }
        console.print_json(json.dumps(report))
        return
    console.print(f"mirrordepth-edge {__version__} on Python {here.python}, {here.system}", style="bold")
    _print_machine(here, opencv)
    _print_backends(probes, here)
    _print_packages(packages, here.architecture)


def _print_machine(here: Machine, opencv: str) -> None:
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.device import cuda_driver

    console.print(f"  {'CPU':14}{here.cpu}, {here.cores} cores, {here.architecture}")
    if here.jetson:
        console.print(f"  {'Jetson':14}{here.jetson}, Jetson Linux {here.l4t or 'unknown'}")
    for gpu in here.gpus:
        memory = f"{gpu.memory_mib} MiB{' shared with the CPU' if gpu.integrated else ''}"
        console.print(
            f"  {'GPU':14}{gpu.name}, compute capability {gpu.compute_capability}, {memory}, CUDA up to {gpu.cuda}"
        )
    if not here.gpus:
        console.print(f"  {'GPU':14}none visible ({cuda_driver().problem})")
    console.print(f"  {'OpenCV':14}{opencv}")


def _print_backends(probes: dict[str, Probe], here: Machine) -> None:
    from mirrordepth_edge.backends.base import Available
    from mirrordepth_edge.backends.onnxruntime import GPU_CURE, cuda_problem
    from mirrordepth_edge.commands.terminal import console

    console.print("backends", style="bold")
    for name, probe in probes.items():
        if isinstance(probe, Available):
            console.print(f"  works    {name:14}{probe.version} on {', '.join(probe.devices)}", style="green")
        else:
            console.print(f"  missing  {name:14}{probe.reason}", style="yellow")
            console.print(f"           {'':14}next: {probe.cure}")
        if name == "onnxruntime" and isinstance(probe, Available) and here.gpus and (problem := cuda_problem()):
            console.print(f"           {'':14}not on the GPU: {problem}", style="yellow")
            console.print(f"           {'':14}next: {GPU_CURE}")


def _print_packages(packages: dict[str, str], architecture: str) -> None:
    from mirrordepth_edge.commands.terminal import console

    console.print("packages", style="bold")
    for name, extra in PACKAGES:
        version = packages.get(name)
        hint = ARM_HINTS.get(name) if architecture == "aarch64" else None
        hint = hint or (f"pip install 'mirrordepth-edge[{extra}]'" if extra else None)
        if version or name not in ONNX_RUNTIMES:
            console.print(f"  {name:18}{version or 'not installed'}{'' if version or not hint else f'  ({hint})'}")
    if set(packages) >= ONNX_RUNTIMES:
        console.print(
            "problem  onnxruntime and onnxruntime-gpu are both installed and overwrite each other.\n"
            "         next: pip uninstall -y onnxruntime onnxruntime-gpu && pip install mirrordepth-edge",
            style="red",
        )


def opencv_build() -> str:
    """OpenCV's version, and whether it can open cameras that need GStreamer; or why it does not import."""
    from mirrordepth_edge.device import parse_gstreamer

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
    from mirrordepth_edge.device import installed_versions

    return installed_versions(name for name, _ in PACKAGES)
