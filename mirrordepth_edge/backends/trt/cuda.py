"""The CUDA runtime calls that engines need, through NVIDIA's cuda-python, with every return code checked.

Not yet run on hardware; `tests/backends/trt/test_api.py` checks every name and argument against cuda-python's modules
(`cuda.bindings.runtime`, and `cuda.cudart` in its first releases).
"""

from __future__ import annotations

from typing import Any, Final

from mirrordepth_edge.errors import DeviceError, MissingError
from mirrordepth_edge.machine.device import Gpu, installed_versions, nvidia_gpus
from mirrordepth_edge.support.versions import padded_key

# CUDA error codes of a machine without a GPU, or without a driver that works with this runtime.
NO_GPU_OR_DRIVER = (
    3,  # cudaErrorInitializationError
    35,  # cudaErrorInsufficientDriver
    100,  # cudaErrorNoDevice
    803,  # cudaErrorSystemDriverMismatch
)
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
DRIVER_TOO_OLD = 35  # cudaErrorInsufficientDriver, which is also returned without any driver
MIN_CUDA: Final = (12, 6)
"""CUDA version of the oldest supported cuda-python."""

DRIVER_CURE = "Check the driver with nvidia-smi (desktop) or tegrastats (Jetson), then run mde doctor."
MEMORY_CURE = "Close other programs that use the GPU, or export and build the model at a smaller --size."
FAULT_CURE = (
    "Run it again. If the error persists, build the engine again with mde build, or report the error with the output "
    "of mde doctor --json."
)


def install(gpu: Gpu | None = None) -> str:
    """The command that installs a cuda-python for this machine's driver.

    Args:
        gpu: GPU of this machine; None if unknown.
    """
    # A driver supports CUDA of its own major version and of older ones, whatever the minor version
    # (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html). That holds for graphics
    # cards. A Jetson's driver is part of its system and needs its own version, unless an upgrade package is installed
    # (https://developer.nvidia.com/blog/simplifying-cuda-upgrades-for-nvidia-jetson-users/): on JetPack 6, CUDA 12.8
    # failed with error 35 (https://github.com/anduril/jetpack-nixos/issues/328).
    if gpu is None:
        return (
            "pip install 'cuda-python==12.6.*' (JetPack 6), 'cuda-python>=12.6,<13' or, for CUDA 13, 'cuda-python>=13'"
        )
    major = _cuda_version(gpu.cuda)[0]
    if major < MIN_CUDA[0] or (gpu.integrated and _cuda_version(gpu.cuda) < MIN_CUDA):
        update = "Install JetPack 6.1 or later" if gpu.integrated else "Update NVIDIA's driver"
        return f"{update}: this driver supports CUDA {gpu.cuda}, but cuda-python 12.6 or later is required."
    if gpu.integrated:
        return f"pip install 'cuda-python=={gpu.cuda}.*'"
    return "pip install 'cuda-python>=12.6,<13'" if major == 12 else f"pip install 'cuda-python>={major},<{major + 1}'"


def too_new(gpu: Gpu) -> str | None:
    """Why the installed cuda-python cannot work with this GPU's driver; None if it may. Does not import cuda-python."""
    installed = installed_bindings()
    if installed is None or _cuda_version(installed)[0] <= _cuda_version(gpu.cuda)[0]:
        return None
    return f"cuda-python {installed} is newer than the driver, which supports CUDA up to {gpu.cuda}"


def installed_bindings() -> str | None:
    """Version of the installed cuda-python, which equals its CUDA version; None if not installed."""
    versions = installed_versions(("cuda-bindings", "cuda-python"))  # one distribution up to 12.6.0
    return versions.get("cuda-bindings") or versions.get("cuda-python")


def _cuda_version(text: str) -> tuple[int, ...]:
    """Major and minor version."""
    return padded_key(text, 2)


def runtime() -> Any:
    """Import cuda-python's runtime module.

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
                "It provides the CUDA calls that copy frames to and from the GPU.",
                install(next(iter(nvidia_gpus()), None)),
            ) from error
    return module


def call(function: Any, *arguments: Any) -> Any:
    """Call a CUDA runtime function and return its result.

    Raises:
        MissingError: there is no working GPU or driver.
        DeviceError: the GPU failed, in this call or in earlier work that it waits for.
    """
    what = f"CUDA call {function.__name__} failed."
    try:
        code, *values = function(*arguments)
    except (
        RuntimeError
    ) as error:  # cuda-python 12.6: "Failed to dlopen libcuda.so.1"; newer versions return DRIVER_TOO_OLD
        raise MissingError(what, f"cuda-python found no driver: {error}.", DRIVER_CURE) from error
    number = int(code)
    if number != 0:
        why = f"It returned {_error_name(code)}."
        if number == DRIVER_TOO_OLD:
            why += " The driver is older than the CUDA version of cuda-python, or there is no driver."
        if number in NO_GPU_OR_DRIVER:
            raise MissingError(what, why, _driver_too_old_cure() if number == DRIVER_TOO_OLD else DRIVER_CURE)
        raise DeviceError(what, why, MEMORY_CURE if number == OUT_OF_MEMORY else FAULT_CURE)
    return values[0] if len(values) == 1 else tuple(values)


def _driver_too_old_cure() -> str:
    """Install an older cuda-python if the installed one is newer than the driver."""
    gpus, installed = nvidia_gpus(), installed_bindings()
    newer = gpus and installed and _cuda_version(installed) > _cuda_version(gpus[0].cuda)
    return install(gpus[0]) if newer else DRIVER_CURE


def attempt(function: Any, *arguments: Any) -> tuple[str | None, Any]:
    """Call a CUDA runtime function that is allowed to fail.

    Returns:
        The problem, such as "cudaGraphInstantiate: cudaErrorNotSupported (801)", or None; and the result.
    """
    code, *values = function(*arguments)
    problem = None if int(code) == 0 else f"{function.__name__}: {_error_name(code)}"
    return problem, values[0] if values else None


def _error_name(code: Any) -> str:
    return f"{getattr(code, 'name', 'error')} ({int(code)})"


def release(function: Any, *arguments: Any) -> None:
    """Call a CUDA runtime function that frees a resource, and ignore its return code."""
    # The code is the error of earlier work, which the call that waited for it has raised already. Raising it again
    # would hide the first error and leave other resources allocated.
    function(*arguments)
