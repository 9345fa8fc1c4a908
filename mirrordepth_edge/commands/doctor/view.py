"""Print the facts and diagnoses of `mde doctor`."""

from __future__ import annotations

from mirrordepth_edge.backends.base import Available
from mirrordepth_edge.backends.onnxruntime import GPU_CURE
from mirrordepth_edge.backends.trt import cuda
from mirrordepth_edge.commands.doctor.checks import Diagnosis, Level
from mirrordepth_edge.commands.doctor.facts import Facts, OpenCv
from mirrordepth_edge.commands.terminal import console
from mirrordepth_edge.machine.system import Memory
from mirrordepth_edge.machine.unavailable import Unavailable

# Each package, and the extra that installs it; None for the base install.
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
# Packages that no extra installs on Arm.
ARM_HINTS = {"tensorrt": "part of JetPack; needs a venv with --system-site-packages", "tensorrt-rtx": "x86-64 only"}
STYLES: dict[Level, str] = {"wrong": "red", "missing": "red", "slow": "yellow", "hint": "default"}


def print_machine(facts: Facts) -> None:
    """Print hardware and system, one line per fact."""
    here, environment = facts.machine, facts.environment
    _print_row("CPU", f"{here.cpu}, {here.cores} cores, {here.architecture}")
    if facts.is_jetson:
        board = here.jetson or "board of another maker"
        _print_row("Jetson", f"{board}, Jetson Linux {here.l4t or 'unknown'}, {_jetpack(facts)}")
    for gpu in here.gpus:
        memory = f"{gpu.memory_mib} MiB{' shared with the CPU' if gpu.integrated else ''}"
        _print_row("GPU", f"{gpu.name}, compute capability {gpu.compute_capability}, {memory}, CUDA up to {gpu.cuda}")
    if here.gpus:
        _print_row("driver", _value(environment.driver))
        _print_row("CUDA toolkit", _value(environment.cuda_toolkit))
    else:
        _print_row("GPU", f"none visible ({facts.gpu_problem})")
    _print_python(facts)
    for system in environment.system_tensorrt:
        package = environment.tensorrt_package
        version = f"{package} " if isinstance(package, str) else ""
        _print_row("TensorRT", f"{version}in {system.folder}, for Python {system.python}")
    _print_row("OpenCV", describe_opencv(facts.opencv))
    _print_clocks(facts)
    _print_space(facts)
    for camera in facts.cameras:
        _print_row("camera", f"{camera.device} {camera.name or f'({camera.problem})'}")


def describe_opencv(opencv: OpenCv | Unavailable) -> str:
    """OpenCV's version and whether it can open CSI cameras, or why it cannot be imported."""
    if isinstance(opencv, Unavailable):
        return f"cannot be imported: {opencv.reason}"
    if opencv.gstreamer:
        return f"{opencv.version} with GStreamer"
    return f"{opencv.version} without GStreamer: USB cameras work, CSI cameras do not"


def _print_python(facts: Facts) -> None:
    python = facts.python
    text = f"{python.version} ({python.abi}){', venv' if python.venv else ''}"
    if facts.is_jetson or facts.environment.system_tensorrt:  # where TensorRT is a system package
        text += f", {'with' if python.system_packages else 'without'} access to system packages"
    _print_row("Python", text)


def _print_clocks(facts: Facts) -> None:
    environment = facts.environment
    if facts.is_jetson:
        mode, names = environment.power_mode, ", ".join(mode.name for mode in environment.power_modes)
        text = _value(mode) if isinstance(mode, Unavailable) else f"{mode.name} (mode {mode.number})"
        _print_row("power mode", f"{text}{f'; available: {names}' if names else ''}")
    for clock in environment.clocks:
        fixed, variable = f"locked at {clock.high_mhz:.0f} MHz", f"{clock.low_mhz:.0f} to {clock.high_mhz:.0f} MHz"
        _print_row(f"{clock.name} clock", fixed if clock.locked else variable)
    if isinstance(environment.governor, str):
        _print_row("CPU governor", environment.governor)


def _print_space(facts: Facts) -> None:
    memory, swaps, free = facts.environment.memory, facts.environment.swaps, facts.cache_free_mib
    if isinstance(memory, Memory):
        kinds = ", ".join(sorted({swap.kind for swap in swaps}))
        swap = f"{memory.swap_mib} MiB swap{f' ({kinds})' if kinds else ''}" if memory.swap_mib else "no swap"
        _print_row("memory", f"{memory.total_mib} MiB, {memory.available_mib} MiB available, {swap}")
    _print_row("disk", f"{free} MiB free for caches" if isinstance(free, int) else _value(free))


def print_backends(facts: Facts) -> None:
    """Print which backends work, and what to type for the others."""
    console.print("backends", style="bold")
    for name, probe in facts.probes.items():
        if isinstance(probe, Available):
            console.print(f"  {'works':15}{name:14}{probe.version} on {', '.join(probe.devices)}", style="green")
        else:
            console.print(f"  {'does not work':15}{name:14}{probe.reason}", style="yellow")
            _print_backend_line(f"next: {probe.cure}")
        if name == "onnxruntime" and isinstance(probe, Available) and facts.onnxruntime_problem:
            _print_backend_line(f"CPU only: {facts.onnxruntime_problem}", style="yellow")
            _print_backend_line(f"next: {GPU_CURE}")


def _print_backend_line(text: str, style: str = "default") -> None:
    console.print(f"  {'':15}{'':14}{text}", style=style)


def print_packages(facts: Facts) -> None:
    """Print the versions of the packages that matter, and how to install the missing ones."""
    console.print("packages", style="bold")
    arm_hints = {**ARM_HINTS, "cuda-bindings": cuda.install(next(iter(facts.machine.gpus), None))}
    for name, extra in PACKAGES:
        version = facts.packages.get(name)
        hint = arm_hints.get(name) if facts.machine.architecture == "aarch64" else None
        hint = hint or (f"pip install 'mirrordepth-edge[{extra}]'" if extra else None)
        if version or name not in ONNX_RUNTIMES:
            console.print(f"  {name:18}{version or 'not installed'}{'' if version or not hint else f'  ({hint})'}")


def print_diagnoses(diagnoses: tuple[Diagnosis, ...]) -> None:
    """Print the problems, each with what to type."""
    console.print("to do" if diagnoses else "no problems found", style="bold")
    for diagnosis in diagnoses:
        console.print(f"  {diagnosis.level:9}{diagnosis.what}", style=STYLES[diagnosis.level])
        if diagnosis.why:
            console.print(f"  {'':9}{diagnosis.why}")
        console.print(f"  {'':9}next: {diagnosis.next}")


def _print_row(name: str, text: str) -> None:
    console.print(f"  {name:14}{text}")


def _value(value: object) -> str:
    return f"unknown ({value.reason})" if isinstance(value, Unavailable) else str(value)


def _jetpack(facts: Facts) -> str:
    package = facts.environment.jetpack_package
    return f"JetPack {_value(facts.environment.jetpack)}{f' ({package})' if isinstance(package, str) else ''}"
