"""What `mde doctor` finds to be done, in order of importance, each with what to type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mirrordepth_edge.commands.doctor.facts import Facts

Level = Literal["wrong", "missing", "slow", "hint"]
LEVELS: tuple[Level, ...] = ("wrong", "missing", "slow", "hint")
ENGINES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
LITTLE_MEMORY_MIB, LITTLE_FREE_MIB, LITTLE_DISK_MIB = 9000, 1500, 2000
NEW_VENV = "-m venv --system-site-packages ~/mde  (then install mde there)"
ADD_SWAP = "sudo fallocate -l 8G /swap && sudo chmod 600 /swap && sudo mkswap /swap && sudo swapon /swap"


@dataclass(frozen=True, kw_only=True)
class ToDo:
    """One thing to do."""

    level: Level
    """Results may be wrong, something does not work, it is slower than it need be, or good to know."""
    what: str
    next: str
    why: str = ""


def to_do(facts: Facts) -> tuple[ToDo, ...]:
    """What there is to do, the most important first."""
    checks = (_known_bad, _gpu, _engine, _onnxruntime, _opencv, _cameras, _power, _room)
    return tuple(sorted((each for check in checks for each in check(facts)), key=lambda each: LEVELS.index(each.level)))


def _known_bad(facts: Facts) -> Iterator[ToDo]:
    from mirrordepth_edge.backends.base import Available
    from mirrordepth_edge.engines.versions import OLDEST_TENSORRT
    from mirrordepth_edge.machine.known_issues import known_problems, version_key

    packaged = facts.environment.tensorrt_package
    for flavour in ("tensorrt", "tensorrt-rtx"):
        probe = facts.probes.get(flavour)
        version = probe.version if isinstance(probe, Available) else facts.packages.get(flavour)
        if version is None and flavour == "tensorrt" and isinstance(packaged, str):
            version = packaged.split("-")[0]
        if version is None or not facts.machine.gpus:
            continue
        gpu, name = facts.machine.gpus[0], f"{ENGINES[flavour]} {version}"
        if flavour == "tensorrt" and version_key(version) < version_key(OLDEST_TENSORRT):
            what = f"{name} is older than {OLDEST_TENSORRT}, the oldest that mde is written for."
            yield ToDo(level="missing", what=what, next="JetPack 6.1 or later, or pip install --upgrade tensorrt")
        for problem in known_problems(flavour, version, gpu.compute_capability):
            yield ToDo(
                level="wrong" if problem.severity == "wrong" else "missing",
                what=f"{problem.what} This is {name} on compute capability {gpu.compute_capability}.",
                why=f"Seen on {problem.seen_on}; {problem.certainty}: {problem.links[0]}",
                next=problem.instead,
            )


def _gpu(facts: Facts) -> Iterator[ToDo]:
    if not facts.machine.gpus and (facts.is_jetson or facts.environment.gpu_on_pci):
        jetson = "sudo apt install nvidia-jetpack; in a container: docker run --runtime nvidia ..."
        desktop = "sudo ubuntu-drivers install, then restart; in a container: docker run --gpus all ..."
        what = f"There is an NVIDIA GPU, and CUDA does not see it: {facts.gpu_problem}."
        yield ToDo(level="missing", what=what, next=jetson if facts.is_jetson else desktop)


def _engine(facts: Facts) -> Iterator[ToDo]:
    from mirrordepth_edge.backends.base import Available, Missing
    from mirrordepth_edge.backends.trt import cuda
    from mirrordepth_edge.backends.trt.tensorrt import NOT_INSTALLED

    probe = facts.probes.get("tensorrt")
    works = any(isinstance(facts.probes.get(name), Available) for name in ENGINES)
    if works or not facts.machine.gpus or not isinstance(probe, Missing):
        return
    why, cure, systems = f"{probe.reason.rstrip('.')}.", probe.cure, facts.environment.system_tensorrt
    # JetPack's bindings have no metadata of pip's: only the import tells whether they are there.
    absent = probe.reason == NOT_INSTALLED and "tensorrt" not in facts.packages
    if absent and systems:
        mine = facts.python.version.rpartition(".")[0]
        same = any(system.python == mine for system in systems)
        why = f"It is in {systems[-1].folder}, for Python {systems[-1].python}; this is Python {mine}"
        why += "." if facts.python.system_packages else ", which does not see the system's packages."
        cure = f"{'python3' if same else f'/usr/bin/python{systems[-1].python}'} {NEW_VENV}"
    elif absent:
        cure = "sudo apt install nvidia-jetpack" if facts.is_jetson else "pip install 'mirrordepth-edge[tensorrt]'"
    elif "cuda-python" in probe.reason:
        cure = cuda.install(facts.machine.gpus[0])
    yield ToDo(level="missing", what="TensorRT does not work here, so that the GPU runs no engine.", why=why, next=cure)


def _onnxruntime(facts: Facts) -> Iterator[ToDo]:
    from mirrordepth_edge.backends.base import Missing
    from mirrordepth_edge.backends.onnxruntime import GPU_CURE, REPAIR

    probe = facts.probes.get("onnxruntime")
    if isinstance(probe, Missing):
        yield ToDo(level="missing", what=f"ONNX Runtime does not work: {probe.reason}.", next=probe.cure)
    if set(facts.packages) >= {"onnxruntime", "onnxruntime-gpu"}:
        what = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other."
        yield ToDo(level="missing", what=what, next=REPAIR)
    if facts.onnxruntime_problem and not facts.is_jetson:  # no wheel of pip's has CUDA for a Jetson
        yield ToDo(
            level="slow", what="ONNX Runtime leaves the GPU alone.", why=facts.onnxruntime_problem, next=GPU_CURE
        )


def _opencv(facts: Facts) -> Iterator[ToDo]:
    if facts.opencv.startswith("does not import"):
        yield ToDo(level="missing", what=f"OpenCV {facts.opencv}", next="sudo apt install libgl1 libglib2.0-0")


def _cameras(facts: Facts) -> Iterator[ToDo]:
    for camera in facts.cameras:
        if camera.problem:
            denied = "denied" in camera.problem
            cure = "sudo usermod -aG video $USER, then log in again" if denied else "mde live --list"
            yield ToDo(level="missing", what=f"{camera.device} cannot be asked: {camera.problem}.", next=cure)


def _power(facts: Facts) -> Iterator[ToDo]:
    from mirrordepth_edge.machine.system import PowerMode, fastest

    mode, best = facts.environment.power_mode, fastest(facts.environment.power_modes)
    if isinstance(mode, PowerMode) and best is not None and mode != best:
        what = f"The power mode is {mode.name}; {best.name} holds the clocks down least."
        yield ToDo(level="slow", what=what, next=f"sudo nvpmodel -m {best.number}")
    moving = [clock.name for clock in facts.environment.clocks if not clock.locked and clock.name != "EMC"]
    if facts.is_jetson and moving:
        what = f"The clocks of {' and '.join(moving)} move with the load, which makes figures hard to repeat."
        yield ToDo(level="hint", what=what, next="sudo jetson_clocks  (before measuring; until the next start)")


def _room(facts: Facts) -> Iterator[ToDo]:
    from mirrordepth_edge.machine.system import Memory

    memory, free = facts.environment.memory, facts.cache_free_mib
    if facts.is_jetson and isinstance(memory, Memory):
        if memory.total_mib < LITTLE_MEMORY_MIB and not memory.swap_mib:
            what = f"{memory.total_mib} MiB of memory and no swap: the system may kill a build."
            yield ToDo(level="hint", what=what, next=ADD_SWAP)
        if memory.available_mib < LITTLE_FREE_MIB:
            what = f"Only {memory.available_mib} MiB of memory are free, for CPU and GPU together."
            yield ToDo(level="hint", what=what, next="sudo systemctl isolate multi-user.target  (stops the desktop)")
    if isinstance(free, int) and free < LITTLE_DISK_MIB:
        yield ToDo(level="hint", what=f"Only {free} MiB of disk are free for caches.", next="df -h ~")
