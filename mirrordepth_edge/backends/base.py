"""The interface of every backend, which `tests/backends/test_contract.py` checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError, MissingError
from mirrordepth_edge.machine.unavailable import Cause, Unavailable
from mirrordepth_edge.manifest import Manifest, TensorSpec

T = TypeVar("T")
Arrays = dict[str, npt.NDArray[Any]]
DEVICE_STAGES = ("host to device", "compute", "device to host")
"""GPU stages of a frame, in order."""


@dataclass(frozen=True, kw_only=True)
class Available:
    """A backend that works on this machine."""

    version: str
    devices: tuple[str, ...]
    """Devices that it runs on: `cpu`, or the name of a GPU."""


Probe = Available | Unavailable


class Session(Protocol):
    """An open model. Buffers are allocated when it is opened, none per frame."""

    backend: str
    version: str
    """Version of the runtime, as it reports it."""
    device: str
    """Device of the network, as the runtime reports it."""
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    notes: tuple[str, ...]
    """Differences from what was requested, one sentence each."""
    warm_up_ms: float
    """Extra time of the first run, such as compiling kernels; 0 if unknown."""

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run the network once.

        Args:
            feeds: one C-contiguous array for each input, with its dtype and shape.

        Returns:
            The outputs by name. They are the same arrays at each call, valid until the next call or `close`; copy them
            to keep them longer.

        Raises:
            InputError: a feed is missing, unknown, or has the wrong dtype, shape or memory order.
            DeviceError: the GPU failed.
        """

    def device_ms(self) -> tuple[float, ...]:
        """Milliseconds of each of `DEVICE_STAGES` in the last `infer`, from CUDA events; empty on the CPU."""

    def close(self) -> None:
        """Free the session's resources; can be called repeatedly."""

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Backend(Protocol):
    """The functions of a backend module."""

    def probe(self) -> Probe:
        """Check whether this backend works on this machine; never raises."""

    def open(self, path: Path, manifest: Manifest | None, options: SessionOptions) -> Session:
        """Open a model.

        Args:
            path: model file.
            manifest: its verified manifest; None for a checkpoint, which has its own metadata.

        Raises:
            MissingError: hardware or a package is missing.
            InputError: the model cannot be used.
        """


class CheckedSession(Session):
    """Base class of sessions: defaults, input check and context manager."""

    notes: tuple[str, ...] = ()
    warm_up_ms = 0.0

    def check(self, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raise InputError if the feeds do not match the inputs; cheap enough for every frame."""
        if len(feeds) != len(self.inputs):
            raise _mismatch(self.inputs, f"{sorted(feeds)}")
        for spec in self.inputs:
            array = feeds.get(spec.name)
            if array is None:
                raise _mismatch(self.inputs, f"{sorted(feeds)}")
            if array.shape != spec.shape or array.dtype != spec.dtype or not array.flags.c_contiguous:
                order = "" if array.flags.c_contiguous else ", not C-contiguous"
                raise _mismatch(self.inputs, f"{spec.name}: {array.dtype} {list(array.shape)}{order}")

    def device_ms(self) -> tuple[float, ...]:
        """Empty by default."""
        return ()

    def close(self) -> None:
        """Do nothing by default."""

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _mismatch(inputs: Sequence[TensorSpec], actual: str) -> InputError:
    wanted = ", ".join(f"{spec.name}: {spec.dtype} {list(spec.shape)} {spec.layout}" for spec in inputs)
    return InputError(
        "The feeds do not match the network's inputs.",
        f"Expected {wanted}, C-contiguous; got {actual}.",
        "Prepare frames with mirrordepth_edge.imaging.preprocess.Preprocessor, or use DepthPredictor.",
    )


def import_checked(packages: tuple[str, ...], load: Callable[[], T], *, install: str, repair: str) -> T | Unavailable:
    """Import a runtime; never raises.

    Args:
        packages: must be installed; the first is the one that `load` imports.
        load: imports and checks it.
        install: what to do if a package is not installed.
        repair: what to do if `load` raises, unless it is a MissingError, which says so itself.
    """
    try:
        for package in packages:
            if find_spec(package) is None:
                return Unavailable(
                    reason=f"the package {package} is not installed", cure=install, cause=Cause.NOT_INSTALLED
                )
        return load()
    except MissingError as error:
        return Unavailable(reason=error.why, cure=error.cure, cause=Cause.IMPORT_FAILED)
    except Exception as error:  # a build for another numpy or CUDA, or a package that is partly overwritten
        return Unavailable(reason=f"import {packages[0]}: {error!r}", cure=repair, cause=Cause.IMPORT_FAILED)


def empty_outputs(outputs: Sequence[TensorSpec]) -> Arrays:
    """Allocate host buffers for a session's outputs."""
    return {spec.name: np.empty(spec.shape, spec.dtype) for spec in outputs}
