"""Read the kernel's and the system's text files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mirrordepth_edge.machine.unavailable import Unavailable

T = TypeVar("T")
ROOT = Path("/")


def read_text(path: Path) -> str:
    """The content of a file.

    Raises:
        OSError: the file cannot be read.
    """
    return path.read_text(encoding="utf-8", errors="replace")


def read_line(path: Path) -> str:
    """The content of a file without surrounding white space; empty if the file cannot be read."""
    try:
        return read_text(path).strip()
    except OSError:
        return ""


def read_parsed(path: Path, parse: Callable[[str], T | None]) -> T | Unavailable:
    """Parse a file; `parse` returns None if the text has no such value."""
    try:
        value = parse(read_text(path))
    except OSError as error:
        return Unavailable(reason=f"{path}: {error.strerror or error}")
    return Unavailable(reason=f"{path} has no such value") if value is None else value
