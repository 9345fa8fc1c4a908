"""`mde doctor`: what is here, what is missing, what to type."""

from __future__ import annotations

from typing import Annotated

import typer

# What each package is for, and the extra that brings it; None for the base install.
PACKAGES = (
    ("numpy", None),
    ("opencv-python", None),
    ("onnx", None),
    ("onnxruntime", None),
    ("onnxruntime-gpu", None),
    ("polygraphy", None),
    ("torch", "export"),
    ("open_clip_torch", "export"),
    ("onnxscript", "export"),
    ("nvidia-modelopt", "export"),
    ("tensorrt", "tensorrt"),
    ("tensorrt-rtx", "rtx"),
    ("cuda-python", "tensorrt"),
)
ONNX_RUNTIMES = {"onnxruntime", "onnxruntime-gpu"}


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
    from mirrordepth_edge.device import machine

    here, probes, packages = machine(), probe_all(), installed_packages()
    if json_output:
        backends = {name: {"available": isinstance(p, Available), **asdict(p)} for name, p in probes.items()}
        report = {"mirrordepth_edge": __version__, "machine": asdict(here), "backends": backends, "packages": packages}
        console.print_json(json.dumps(report))
        return
    console.print(f"mirrordepth-edge {__version__} on Python {here.python}, {here.system}", style="bold")
    console.print(f"  {'CPU':14}{here.cpu}, {here.cores} cores, {here.architecture}")
    if here.jetson:
        console.print(f"  {'Jetson':14}{here.jetson}, Jetson Linux {here.l4t or 'unknown'}")
    for gpu in here.gpus:
        memory = f", {gpu.memory_mib} MiB" if gpu.memory_mib else ""
        console.print(f"  {'GPU':14}{gpu.name}, compute capability {gpu.compute_capability}{memory}, {gpu.driver}")
    if not here.gpus:
        console.print(f"  {'GPU':14}none visible")
    console.print("backends", style="bold")
    for name, probe in probes.items():
        if isinstance(probe, Available):
            console.print(f"  works    {name:14}{probe.version} on {', '.join(probe.devices)}", style="green")
        else:
            console.print(f"  missing  {name:14}{probe.reason}", style="yellow")
            console.print(f"           {'':14}next: {probe.cure}")
    console.print("packages", style="bold")
    for name, extra in PACKAGES:
        version = packages.get(name)
        hint = "" if version or extra is None else f"  (pip install 'mirrordepth-edge[{extra}]')"
        if version or name not in ONNX_RUNTIMES:
            console.print(f"  {name:18}{version or 'not installed'}{hint}")
    if set(packages) >= ONNX_RUNTIMES:
        console.print(
            "problem  onnxruntime and onnxruntime-gpu are both installed and overwrite each other.\n"
            "         next: pip uninstall -y onnxruntime onnxruntime-gpu && pip install mirrordepth-edge",
            style="red",
        )


def installed_packages() -> dict[str, str]:
    """Versions of the packages that matter, where installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name, _ in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
