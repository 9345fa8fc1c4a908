"""Import TensorRT and TensorRT for RTX to run engines; no other module of the inference code imports them."""

from __future__ import annotations

import platform
import re
from typing import Any, Final, Literal

from mirrordepth_edge.errors import MissingError

Flavour = Literal["tensorrt", "tensorrt-rtx"]

PACKAGES: Final[dict[Flavour, str]] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Import names of the runtimes, in order of preference."""
TITLES: Final[dict[Flavour, str]] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
JETPACK: Final = "python3 -m venv --system-site-packages ~/mde  (TensorRT is part of JetPack, not of pip)"
USE_TENSORRT: Final = "Use TensorRT on this machine: mde build model.onnx --target here"
INSTALL: Final[dict[Flavour, str]] = {
    "tensorrt": "pip install 'mirrordepth-edge[tensorrt]'",
    "tensorrt-rtx": "pip install 'mirrordepth-edge[rtx]'  (x86-64 Linux or Windows)",
}
LIBRARY: Final = re.compile(r"\blib([\w-]+)\.so\b(?:\.(\d+))?|DLL load failed")
"""How loaders name a shared library: the bindings are installed, but a library they need cannot be loaded."""


def import_runtime(flavour: Flavour) -> Any:
    """Import the package `tensorrt` or `tensorrt_rtx`.

    Raises:
        MissingError: it is not installed, or its libraries cannot be loaded.
    """
    try:
        if flavour == "tensorrt":
            import tensorrt

            return tensorrt
        import tensorrt_rtx

        return tensorrt_rtx
    except (ImportError, OSError) as error:  # OSError: libnvinfer is not where the bindings look for it
        cure = _repair_tensorrt(error) if flavour == "tensorrt" else how_to_install(flavour)
        raise MissingError(
            f"{TITLES[flavour]} cannot be used here.", f"import {PACKAGES[flavour]}: {error}", cure
        ) from error


def how_to_install(flavour: Flavour) -> str:
    """How to install a runtime on this machine, or what to use instead of it."""
    if platform.machine() != "aarch64":
        return INSTALL[flavour]
    return JETPACK if flavour == "tensorrt" else USE_TENSORRT


def _repair_tensorrt(error: ImportError | OSError) -> str:
    """What to type after a failed import of `tensorrt`."""
    library = LIBRARY.search(str(error))
    if library is None:
        return how_to_install("tensorrt")
    if platform.machine() != "aarch64":
        return "pip install --force-reinstall tensorrt"
    # nvidia-jetpack only lists other packages; apt installs those that are missing. A damaged library is replaced
    # only if its own package is named, which Debian calls after the library: libnvinfer.so.10 is in libnvinfer10.
    own = f" libnvinfer{library[2]}" if library[1] == "nvinfer" and library[2] else ""
    return f"sudo apt update && sudo apt install --reinstall nvidia-jetpack{own}"
