"""How `mde doctor` prints what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirrordepth_edge.commands.terminal import console

if TYPE_CHECKING:
    from mirrordepth_edge.commands.doctor.checks import Level, ToDo
    from mirrordepth_edge.commands.doctor.facts import Facts

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
    "cuda-bindings": "pip install 'cuda-python==12.6.*' on JetPack 6, 'cuda-python==13.0.*' on JetPack 7.0",
}
STYLES: dict[Level, str] = {"wrong": "red", "missing": "red", "slow": "yellow", "hint": "default"}


def print_machine(facts: Facts) -> None:
    """The machine, a line for each thing that is known of it."""
    here = facts.machine
    _row("CPU", f"{here.cpu}, {here.cores} cores, {here.architecture}")
    if facts.is_jetson:
        _row(
            "Jetson",
            f"{here.jetson or 'a board of another name'}, Jetson Linux {here.l4t or 'unknown'}, {_jetpack(facts)}",
        )
    for gpu in here.gpus:
        memory = f"{gpu.memory_mib} MiB{' shared with the CPU' if gpu.integrated else ''}"
        _row("GPU", f"{gpu.name}, compute capability {gpu.compute_capability}, {memory}, CUDA up to {gpu.cuda}")
    if not here.gpus:
        _row("GPU", f"none visible ({facts.gpu_problem})")
    else:
        _row("driver", _known(facts.environment.driver))
        _row("CUDA toolkit", _known(facts.environment.cuda_toolkit))
    python = facts.python
    sees = f", which {'sees' if python.system_packages else 'does not see'} the system's packages"
    matters = facts.is_jetson or facts.environment.system_tensorrt
    _row("Python", f"{python.abi}{', a venv' if python.venv else ''}{sees if matters else ''}")
    for place in facts.environment.system_tensorrt:
        version = facts.environment.tensorrt_package
        of = f"{version} " if isinstance(version, str) else ""
        _row("TensorRT", f"{of}in {place.folder}, for Python {place.python}")
    _row("OpenCV", facts.opencv)
    _print_speed(facts)
    _print_room(facts)


def _print_speed(facts: Facts) -> None:
    from mirrordepth_edge.machine.system import PowerMode

    environment = facts.environment
    if facts.is_jetson:
        mode, names = environment.power_mode, ", ".join(mode.name for mode in environment.power_modes)
        known = f"{mode.name}, number {mode.number}" if isinstance(mode, PowerMode) else _known(mode)
        _row("power mode", f"{known}{f', of {names}' if names else ''}")
    for clock in environment.clocks:
        state = "locked at" if clock.locked else f"moves from {clock.low_mhz:.0f} to"
        _row(f"{clock.name} clock", f"{state} {clock.high_mhz:.0f} MHz")
    if isinstance(environment.governor, str):
        _row("governor", environment.governor)


def _print_room(facts: Facts) -> None:
    from mirrordepth_edge.machine.system import Memory

    memory, swaps, free = facts.environment.memory, facts.environment.swaps, facts.cache_free_mib
    if isinstance(memory, Memory):
        kinds = ", ".join(sorted({swap.kind for swap in swaps}))
        swap = f"{memory.swap_mib} MiB of swap{f' ({kinds})' if kinds else ''}"
        _row("memory", f"{memory.total_mib} MiB, {memory.available_mib} MiB free, {swap}")
    _row("disk", f"{free} MiB free for caches" if isinstance(free, int) else _known(free))
    for camera in facts.cameras:
        _row("camera", f"{camera.device} {camera.name or f'({camera.problem})'}")


def print_backends(facts: Facts) -> None:
    """What runs networks, and what to type for what does not."""
    from mirrordepth_edge.backends.base import Available
    from mirrordepth_edge.backends.onnxruntime import GPU_CURE

    console.print("backends", style="bold")
    for name, probe in facts.probes.items():
        if isinstance(probe, Available):
            console.print(f"  works    {name:14}{probe.version} on {', '.join(probe.devices)}", style="green")
        else:
            console.print(f"  missing  {name:14}{probe.reason}", style="yellow")
            console.print(f"           {'':14}next: {probe.cure}")
        if name == "onnxruntime" and isinstance(probe, Available) and facts.onnxruntime_problem:
            console.print(f"           {'':14}not on the GPU: {facts.onnxruntime_problem}", style="yellow")
            console.print(f"           {'':14}next: {GPU_CURE}")


def print_packages(packages: dict[str, str], architecture: str) -> None:
    """The packages that matter."""
    console.print("packages", style="bold")
    for name, extra in PACKAGES:
        version = packages.get(name)
        hint = ARM_HINTS.get(name) if architecture == "aarch64" else None
        hint = hint or (f"pip install 'mirrordepth-edge[{extra}]'" if extra else None)
        if version or name not in ONNX_RUNTIMES:
            console.print(f"  {name:18}{version or 'not installed'}{'' if version or not hint else f'  ({hint})'}")


def print_to_do(found: tuple[ToDo, ...]) -> None:
    """What there is to do, each with what to type."""
    console.print("to do" if found else "nothing to do", style="bold")
    for each in found:
        console.print(f"  {each.level:9}{each.what}", style=STYLES[each.level])
        if each.why:
            console.print(f"  {'':9}{each.why}")
        console.print(f"  {'':9}next: {each.next}")


def _row(name: str, text: str) -> None:
    console.print(f"  {name:14}{text}")


def _known(value: object) -> str:
    from mirrordepth_edge.machine.system import Unknown

    return f"unknown: {value.reason}" if isinstance(value, Unknown) else str(value)


def _jetpack(facts: Facts) -> str:
    package = facts.environment.jetpack_package
    return f"JetPack {_known(facts.environment.jetpack)}{f' ({package})' if isinstance(package, str) else ''}"
