"""The few CUDA runtime calls that engines need, through NVIDIA's cuda-python, every code checked.

Not yet run on hardware: written against cuda-python's documented API (modules `cuda.bindings.runtime`,
and `cuda.cudart` in its first releases), to which `tests/backends/test_engine_api.py` holds every name and argument.
"""

from __future__ import annotations

import re
from typing import Any, Final

from mirrordepth_edge.errors import DeviceError, MissingError
from mirrordepth_edge.machine.device import Gpu, installed_versions, nvidia_gpus

# Of CUDA's codes, those of a machine without a GPU or driver that works together with this runtime.
NOTHING_HERE = (
    3,  # cudaErrorInitializationError
    35,  # cudaErrorInsufficientDriver
    100,  # cudaErrorNoDevice
    803,  # cudaErrorSystemDriverMismatch
)
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
TOO_OLD = 35  # cudaErrorInsufficientDriver, which a machine without any driver answers too
OLDEST: Final = (12, 6)
"""CUDA of the oldest cuda-python that calls are written for."""

DRIVER_CURE = "Check the driver with nvidia-smi (desktop) or tegrastats (Jetson); mde doctor shows what is here."
MEMORY_CURE = "Close other programs that use the GPU, or export and build the model at a smaller --size."
FAULT_CURE = (
    "Run it again; if it stays, build the engine again with mde build, or report it with what mde doctor shows."
)


def install(gpu: Gpu | None = None) -> str:
    """What to type for a cuda-python that this machine's driver serves.

    A driver serves CUDA of its own major version and of older ones, minor versions notwithstanding
    (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html). That is said of drivers of
    graphics cards; a Jetson's is part of its system, and newer CUDA needs a package of its own there
    (https://developer.nvidia.com/blog/simplifying-cuda-upgrades-for-nvidia-jetson-users/). On JetPack 6 a program of
    CUDA 12.8 was answered 35 (https://github.com/anduril/jetpack-nixos/issues/328). So there it is the driver's own.

    Args:
        gpu: None where it is unknown.
    """
    if gpu is None:
        return (
            "pip install 'cuda-python==12.6.*' (JetPack 6), 'cuda-python>=12.6,<13' or, for CUDA 13, 'cuda-python>=13'"
        )
    major = _version(gpu.cuda)[0]
    if major < OLDEST[0] or (gpu.integrated and _version(gpu.cuda) < OLDEST):
        newer = "Install JetPack 6.1 or later" if gpu.integrated else "Update NVIDIA's driver"
        return f"{newer}: this driver serves CUDA {gpu.cuda}, and cuda-python is needed from 12.6 on."
    if gpu.integrated:
        return f"pip install 'cuda-python=={gpu.cuda}.*'"
    return "pip install 'cuda-python>=12.6,<13'" if major == 12 else f"pip install 'cuda-python>={major},<{major + 1}'"


def too_new(gpu: Gpu) -> str | None:
    """Why the installed cuda-python cannot work with this GPU's driver, without importing it; None where it may."""
    installed = installed_bindings()
    if installed is None or _version(installed)[0] <= _version(gpu.cuda)[0]:
        return None
    return f"cuda-python {installed} is newer than the driver, which serves CUDA {gpu.cuda}"


def installed_bindings() -> str | None:
    """Version of the installed cuda-python, which is CUDA's; None without one."""
    found = installed_versions(("cuda-bindings", "cuda-python"))  # up to 12.6.0 it was one distribution
    return found.get("cuda-bindings") or found.get("cuda-python")


def _version(text: str) -> tuple[int, int]:
    """Major and minor."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    major, minor = (*numbers, 0, 0)[:2]
    return major, minor


def runtime() -> Any:
    """cuda-python's runtime module.

    Raises:
        MissingError: cuda-python is not installed.
    """
    try:
        from cuda.bindings import runtime as module
    except ImportError:
        try:
            from cuda import cudart as module
        except ImportError as error:
            raise MissingError(
                "Engines need cuda-python, which is not installed.",
                "It carries the CUDA calls that move frames to and from the GPU.",
                install(next(iter(nvidia_gpus()), None)),
            ) from error
    return module


def call(function: Any, *arguments: Any) -> Any:
    """Call a CUDA runtime function; return its value, or name its error.

    Raises:
        MissingError: there is no GPU or driver that works.
        DeviceError: the GPU is there and failed, by this call or by earlier work that it waits for.
    """
    what = f"CUDA refused {function.__name__}."
    try:
        code, *values = function(*arguments)
    except RuntimeError as error:  # cuda-python 12.6, "Failed to dlopen libcuda.so.1"; newer ones return TOO_OLD
        raise MissingError(what, f"cuda-python found no driver: {error}.", DRIVER_CURE) from error
    number = int(code)
    if number != 0:
        why = f"It returned {_named(code)}."
        if number == TOO_OLD:
            why += " The driver is older than the CUDA that cuda-python calls, or there is none."
        if number in NOTHING_HERE:
            raise MissingError(what, why, _older_cuda_python() if number == TOO_OLD else DRIVER_CURE)
        raise DeviceError(what, why, MEMORY_CURE if number == OUT_OF_MEMORY else FAULT_CURE)
    return values[0] if len(values) == 1 else tuple(values)


def _older_cuda_python() -> str:
    """What to type after `TOO_OLD`: an older cuda-python, where the installed one is newer than the driver at all."""
    gpus, installed = nvidia_gpus(), installed_bindings()
    newer = gpus and installed and _version(installed) > _version(gpus[0].cuda)
    return install(gpus[0]) if newer else DRIVER_CURE


def attempt(function: Any, *arguments: Any) -> tuple[str | None, Any]:
    """Call a CUDA runtime function that may fail, for there is another way.

    Returns:
        What went wrong, such as "cudaGraphInstantiate: cudaErrorNotSupported (801)", or None; and the value.
    """
    code, *values = function(*arguments)
    problem = None if int(code) == 0 else f"{function.__name__}: {_named(code)}"
    return problem, values[0] if values else None


def _named(code: Any) -> str:
    return f"{getattr(code, 'name', 'error')} ({int(code)})"


def release(function: Any, *arguments: Any) -> None:
    """Call a CUDA runtime function on the way out, whatever it answers.

    What it answers then is the error of earlier work, already raised by the call that waited for it;
    raising it again would hide the first error and leave the rest unfreed.
    """
    function(*arguments)
