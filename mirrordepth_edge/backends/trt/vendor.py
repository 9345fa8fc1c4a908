"""The one place where TensorRT and TensorRT for RTX are imported for running engines."""

from __future__ import annotations

import platform
import re
from typing import Any, Final, Literal

from mirrordepth_edge.errors import MissingError

Flavour = Literal["tensorrt", "tensorrt-rtx"]

PACKAGES: Final[dict[Flavour, str]] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Import names of the runtimes, in the order in which they are looked for."""
JETPACK: Final = "It comes with JetPack, not from pip: make the venv with --system-site-packages."
INSTALL: Final[dict[Flavour, str]] = {
    "tensorrt": (
        "Jetson: it comes with JetPack (make the venv with --system-site-packages); "
        "desktop: pip install 'mirrordepth-edge[tensorrt]'"
    ),
    "tensorrt-rtx": "pip install 'mirrordepth-edge[rtx]'  (x86-64 Linux or Windows)",
}
LIBRARY: Final = re.compile(r"\blib([\w-]+)\.so\b(?:\.(\d+))?|DLL load failed")
"""How loaders name a shared library: the bindings are installed, and what they need does not load."""


def import_runtime(flavour: Flavour) -> Any:
    """The package `tensorrt` or `tensorrt_rtx`.

    Raises:
        MissingError: it is not installed, or its libraries do not load.
    """
    try:
        if flavour == "tensorrt":
            import tensorrt

            return tensorrt
        import tensorrt_rtx

        return tensorrt_rtx
    except (ImportError, OSError) as error:  # OSError: libnvinfer is not where the bindings look
        if flavour == "tensorrt":
            raise MissingError("TensorRT is not usable here.", f"import tensorrt: {error}", _cure(error)) from error
        raise MissingError(
            "TensorRT for RTX is not usable here.", f"import tensorrt_rtx: {error}", INSTALL[flavour]
        ) from error


def _cure(error: ImportError | OSError) -> str:
    """What to type after an import of `tensorrt` that failed.

    JetPack's package is a list of others, which apt installs where they are missing; the library's own is named beside
    it so that a damaged one is replaced. Debian names packages after libraries: libnvinfer.so.10 is in libnvinfer10.
    """
    on_jetson = platform.machine() == "aarch64"
    library = LIBRARY.search(str(error))
    if library is None:
        return JETPACK if on_jetson else INSTALL["tensorrt"]
    if not on_jetson:
        return "pip install --force-reinstall tensorrt"
    own = f" libnvinfer{library[2]}" if library[1] == "nvinfer" and library[2] else ""
    return f"sudo apt update && sudo apt install --reinstall nvidia-jetpack{own}"
