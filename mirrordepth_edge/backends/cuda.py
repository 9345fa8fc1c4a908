"""The few CUDA runtime calls that engines need, through NVIDIA's cuda-python, every code checked.

Not yet run on hardware: written against cuda-python's documented API (modules `cuda.bindings.runtime`,
and `cuda.cudart` in its first releases), to which `tests/backends/test_engine_api.py` holds every name and argument.
"""

from __future__ import annotations

from typing import Any

from mirrordepth_edge.errors import DeviceError, MissingError

# Of CUDA's codes, those of a machine without a GPU or driver that works together with this runtime.
NOTHING_HERE = (
    3,  # cudaErrorInitializationError
    35,  # cudaErrorInsufficientDriver
    100,  # cudaErrorNoDevice
    803,  # cudaErrorSystemDriverMismatch
)
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
TOO_OLD = 35  # cudaErrorInsufficientDriver, which a machine without any driver answers too

DRIVER_CURE = "Check the driver with nvidia-smi (desktop) or tegrastats (Jetson); mde doctor shows what is here."
MEMORY_CURE = "Close other programs that use the GPU, or export and build the model at a smaller --size."
FAULT_CURE = (
    "Run it again; if it stays, build the engine again with mde build, or report it with what mde doctor shows."
)


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
                "pip install 'cuda-python>=12.6,<13'  (JetPack 6), or 'cuda-python>=13' for CUDA 13",
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
            raise MissingError(what, why, DRIVER_CURE)
        raise DeviceError(what, why, MEMORY_CURE if number == OUT_OF_MEMORY else FAULT_CURE)
    return values[0] if len(values) == 1 else tuple(values)


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
