"""Diagnose the problems of a machine, each with the command that fixes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mirrordepth_edge.backends.base import Available
from mirrordepth_edge.backends.onnxruntime import GPU_CURE, REPAIR
from mirrordepth_edge.backends.trt import cuda
from mirrordepth_edge.backends.trt.vendor import TITLES, Flavour
from mirrordepth_edge.commands.doctor.facts import Facts
from mirrordepth_edge.engines.versions import OLDEST_TENSORRT
from mirrordepth_edge.machine.jetson import PowerMode, fastest
from mirrordepth_edge.machine.known_issues import known_issues
from mirrordepth_edge.machine.system import ADD_SWAP, Memory
from mirrordepth_edge.machine.unavailable import Cause, Unavailable
from mirrordepth_edge.support.versions import version_key

Level = Literal["wrong", "missing", "slow", "hint"]
LEVELS: tuple[Level, ...] = ("wrong", "missing", "slow", "hint")
"""Most important first: results may be wrong, something does not work, something is slow, advice."""
FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")
MIN_MEMORY_MIB, MIN_AVAILABLE_MIB, MIN_DISK_MIB = 9000, 1500, 2000
NEW_VENV = "-m venv --system-site-packages ~/mde  (then install mirrordepth-edge in it)"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A problem and what to do about it."""

    level: Level
    what: str
    next: str
    """Command to type, or what to change."""
    why: str = ""


def diagnose(facts: Facts) -> tuple[Diagnosis, ...]:
    """The problems of a machine, most important first."""
    diagnoses = (diagnosis for check in CHECKS for diagnosis in check(facts))
    return tuple(sorted(diagnoses, key=lambda diagnosis: LEVELS.index(diagnosis.level)))


def _check_versions(facts: Facts) -> Iterator[Diagnosis]:
    if not facts.machine.gpus:
        return
    capability = facts.machine.gpus[0].compute_capability
    for flavour in FLAVOURS:
        version = _runtime_version(facts, flavour)
        if version is None:
            continue
        runtime = f"{TITLES[flavour]} {version}"
        if flavour == "tensorrt" and version_key(version) < version_key(OLDEST_TENSORRT):
            what = f"{runtime} is too old; mde needs {OLDEST_TENSORRT} or later."
            cure = "Install JetPack 6.1 or later." if facts.is_jetson else "pip install --upgrade tensorrt"
            yield Diagnosis(level="missing", what=what, next=cure)
        for issue in known_issues(flavour, version, capability):
            yield Diagnosis(
                level="wrong" if issue.severity == "wrong" else "missing",
                what=f"{issue.what} Installed: {runtime}, for compute capability {capability}.",
                why=f"Seen on {issue.seen_on} ({issue.certainty}): {issue.links[0]}",
                next=issue.instead,
            )


def _runtime_version(facts: Facts, flavour: Flavour) -> str | None:
    """Version of a runtime as it reports it, or else of its pip package, or else of its Debian package."""
    probe, packaged = facts.probes.get(flavour), facts.environment.tensorrt_package
    version = probe.version if isinstance(probe, Available) else facts.packages.get(flavour)
    if version is None and flavour == "tensorrt" and isinstance(packaged, str):
        return packaged.split("-")[0]
    return version


def _check_gpu(facts: Facts) -> Iterator[Diagnosis]:
    if not facts.machine.gpus and (facts.is_jetson or facts.environment.gpu_on_pci):
        jetson = "sudo apt install nvidia-jetpack; in a container: docker run --runtime nvidia ..."
        desktop = "sudo ubuntu-drivers install, then restart; in a container: docker run --gpus all ..."
        what = f"This machine has an NVIDIA GPU, but CUDA cannot use it: {facts.gpu_problem}."
        yield Diagnosis(level="missing", what=what, next=jetson if facts.is_jetson else desktop)


def _check_tensorrt(facts: Facts) -> Iterator[Diagnosis]:
    probe = facts.probes.get("tensorrt")
    works = any(isinstance(facts.probes.get(flavour), Available) for flavour in FLAVOURS)
    if works or not facts.machine.gpus or not isinstance(probe, Unavailable):
        return
    why, cure, systems = f"Reason: {probe.reason.rstrip('.')}.", probe.cure, facts.environment.system_tensorrt
    # JetPack's bindings have no pip metadata, so only the import tells whether this Python has them.
    not_installed = probe.cause is Cause.NOT_INSTALLED and "tensorrt" not in facts.packages
    if not_installed and systems:
        python = facts.python.version.rpartition(".")[0]
        same = any(system.python == python for system in systems)
        why = f"It is installed in {systems[-1].folder} for Python {systems[-1].python}; this is Python {python}"
        why += "." if facts.python.system_packages else " without access to system packages."
        cure = f"{'python3' if same else f'/usr/bin/python{systems[-1].python}'} {NEW_VENV}"
    elif not_installed:
        cure = "sudo apt install nvidia-jetpack" if facts.is_jetson else "pip install 'mirrordepth-edge[tensorrt]'"
    elif probe.cause is Cause.CUDA_PYTHON:
        cure = cuda.install(facts.machine.gpus[0])
    yield Diagnosis(level="missing", what="TensorRT does not work, so the GPU cannot run engines.", why=why, next=cure)


def _check_onnxruntime(facts: Facts) -> Iterator[Diagnosis]:
    probe = facts.probes.get("onnxruntime")
    if isinstance(probe, Unavailable):
        yield Diagnosis(level="missing", what=f"ONNX Runtime does not work: {probe.reason}.", next=probe.cure)
    if set(facts.packages) >= {"onnxruntime", "onnxruntime-gpu"}:
        what = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other."
        yield Diagnosis(level="missing", what=what, next=REPAIR)
    if facts.onnxruntime_problem and not facts.is_jetson:  # no pip wheel has CUDA for a Jetson
        what = "ONNX Runtime runs on the CPU, not on the GPU."
        yield Diagnosis(level="slow", what=what, why=facts.onnxruntime_problem, next=GPU_CURE)


def _check_opencv(facts: Facts) -> Iterator[Diagnosis]:
    if isinstance(facts.opencv, Unavailable):
        what = f"OpenCV cannot be imported: {facts.opencv.reason}"
        yield Diagnosis(level="missing", what=what, next=facts.opencv.cure)


def _check_cameras(facts: Facts) -> Iterator[Diagnosis]:
    for camera in facts.cameras:
        if camera.problem:
            cure = "sudo usermod -aG video $USER, then log in again" if camera.denied else "mde live --list"
            what = f"{camera.device} cannot be opened: {camera.problem}."
            yield Diagnosis(level="missing", what=what, next=cure)


def _check_clocks(facts: Facts) -> Iterator[Diagnosis]:
    mode, best = facts.environment.power_mode, fastest(facts.environment.power_modes)
    if isinstance(mode, PowerMode) and best is not None and mode != best:
        what = f"The power mode is {mode.name}; {best.name} is faster."
        yield Diagnosis(level="slow", what=what, next=f"sudo nvpmodel -m {best.number}")
    unlocked = [clock.name for clock in facts.environment.clocks if not clock.locked and clock.name != "EMC"]
    if facts.is_jetson and unlocked:
        what = f"{' and '.join(unlocked)} clocks vary with the load, so benchmark results vary too."
        yield Diagnosis(level="hint", what=what, next="sudo jetson_clocks  (before a benchmark; lasts until reboot)")


def _check_space(facts: Facts) -> Iterator[Diagnosis]:
    memory, free = facts.environment.memory, facts.cache_free_mib
    if facts.is_jetson and isinstance(memory, Memory):
        if memory.total_mib < MIN_MEMORY_MIB and not memory.swap_mib:
            what = f"{memory.total_mib} MiB of memory and no swap: the system may kill an engine build."
            yield Diagnosis(level="hint", what=what, next=ADD_SWAP)
        if memory.available_mib < MIN_AVAILABLE_MIB:
            what = f"Only {memory.available_mib} MiB of memory are available, shared by CPU and GPU."
            stop_desktop = "sudo systemctl isolate multi-user.target  (stops the desktop)"
            yield Diagnosis(level="hint", what=what, next=stop_desktop)
    if isinstance(free, int) and free < MIN_DISK_MIB:
        what = f"Only {free} MiB of disk space are free for caches."
        yield Diagnosis(level="hint", what=what, next="du -sh ~/.cache/*  (then delete what you do not need)")


CHECKS = (
    _check_versions,
    _check_gpu,
    _check_tensorrt,
    _check_onnxruntime,
    _check_opencv,
    _check_cameras,
    _check_clocks,
    _check_space,
)
