"""A value that could not be determined, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Cause(str, Enum):
    """Why a backend cannot be used, where callers act on it."""

    NOT_INSTALLED = "not installed"
    IMPORT_FAILED = "import failed"
    NO_GPU = "no GPU"
    GPU_NOT_SUPPORTED = "GPU not supported"
    CUDA_PYTHON = "cuda-python"
    """cuda-python is missing, broken, or newer than the driver."""


@dataclass(frozen=True, kw_only=True)
class Unavailable:
    """A value that is not available on this machine."""

    reason: str
    """For display only; code that branches uses `cause`."""
    cure: str = ""
    """What to type or change; empty where there is nothing to do."""
    cause: Cause | None = None


def to_plain(value: Any) -> dict[str, Any]:
    """Convert a dataclass to plain values for JSON.

    Result files describe an unavailable value as `{"reason": ...}`, so an empty `cure` or `cause` is left out.
    """
    return asdict(value, dict_factory=_without_empty)


def _without_empty(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in pairs if name not in ("cure", "cause") or value}
