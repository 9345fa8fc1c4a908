"""The contract every backend keeps. `tests/backends/test_contract.py` holds each of them to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.manifest import Manifest, TensorSpec

Arrays = dict[str, npt.NDArray[Any]]
DEVICE_STAGES = ("host to device", "compute", "device to host")
"""What a GPU does for a frame, in order."""


@dataclass(frozen=True, kw_only=True)
class Available:
    """A backend that can be used here."""

    version: str
    devices: tuple[str, ...]
    """What it really drives, such as `cpu` or a GPU's name."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A backend that cannot be used here, and what to do about it."""

    reason: str
    cure: str


Probe = Available | Missing


class Session(Protocol):
    """An opened artefact. Buffers are allocated when it opens, none per frame."""

    backend: str
    version: str
    """Version of the runtime beneath, as it reports it itself."""
    device: str
    """What the network runs on, as the runtime itself reports it."""
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    notes: tuple[str, ...]
    """What is not as it was asked for, in sentences."""
    warm_up_ms: float
    """What the first run took that later ones do not, such as compiling kernels; 0 where nothing is known of it."""

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run the network once.

        Args:
            feeds: one C-contiguous array for each input, of its dtype and shape.

        Returns:
            The outputs by name, the same arrays at each call: valid until the next call or `close`,
            which may free the memory under them. Copy what is kept longer.

        Raises:
            InputError: a feed is missing, unknown, or of another dtype, shape or memory order.
            DeviceError: the GPU failed.
        """

    def device_ms(self) -> tuple[float, ...]:
        """Milliseconds of each of `DEVICE_STAGES` in the last `infer`, by the GPU's clock; empty on the CPU."""

    def close(self) -> None:
        """Free what the session holds; calling it twice is fine."""

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Backend(Protocol):
    """What a backend's module offers."""

    def probe(self) -> Probe:
        """Find out whether this backend works here; never raises."""

    def open(self, path: Path, manifest: Manifest | None, options: SessionOptions) -> Session:
        """Open an artefact.

        Args:
            manifest: its verified manifest; None for a checkpoint, which describes itself.

        Raises:
            MissingError: hardware or a package is missing.
            InputError: the artefact cannot be used.
        """


class CheckedSession:
    """What sessions share: a name, specs, the check of feeds, and the context manager."""

    notes: tuple[str, ...] = ()
    """What is not as it was asked for, in sentences."""
    warm_up_ms: float = 0.0
    """What the first run took that later ones do not, such as compiling kernels; 0 where nothing is known of it."""

    backend: str
    version: str
    device: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def check(self, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        """Refuse feeds that do not fit; a few dictionary look-ups, cheap enough for every frame."""
        if len(feeds) != len(self.inputs):
            raise _misfit(self.inputs, f"{sorted(feeds)} was given")
        for spec in self.inputs:
            array = feeds.get(spec.name)
            if array is None:
                raise _misfit(self.inputs, f"{sorted(feeds)} was given")
            if array.shape != spec.shape or array.dtype != spec.dtype or not array.flags.c_contiguous:
                order = "" if array.flags.c_contiguous else ", not C-contiguous"
                raise _misfit(self.inputs, f"{spec.name} is {array.dtype} {list(array.shape)}{order}")

    def device_ms(self) -> tuple[float, ...]:
        """No GPU's clock by default."""
        return ()

    def close(self) -> None:
        """Nothing to free by default."""

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _misfit(inputs: Sequence[TensorSpec], found: str) -> InputError:
    wanted = ", ".join(f"{spec.name}: {spec.dtype} {list(spec.shape)} {spec.layout}" for spec in inputs)
    return InputError(
        "The network's inputs do not fit.",
        f"It takes {wanted}, C-contiguous; {found}.",
        "Prepare frames with mirrordepth_edge.imaging.preprocess.Preprocessor, or use DepthPredictor.",
    )


def empty_outputs(outputs: Sequence[TensorSpec]) -> Arrays:
    """Host buffers for a session's outputs."""
    return {spec.name: np.empty(spec.shape, spec.dtype) for spec in outputs}
