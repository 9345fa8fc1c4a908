"""The base class of recordings: when they stop, and how they report a problem."""

from __future__ import annotations

import errno
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

from mirrordepth_edge.errors import InputError, MdeError
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.support.files import ensure_folder

MIN_FREE_BYTES = 64 * 2**20
"""A recording stops when less disk space is free: enough to close the file, and for the machine to keep working."""
JPEG_QUALITY = 90


class Recording(ABC):
    """An output that writes results to disk. An error ends the recording, not the run; `problem` reports it.

    Args:
        path: the output file, which must not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.frames = 0
        """Number of results written so far."""
        self.problem: str | None = None
        """Why the recording has stopped, as text for the user; None while it runs."""
        self._closed = False

    def __enter__(self) -> Recording:
        """
        Raises:
            MdeError: the recording cannot start.
        """
        ensure_folder(self._folder())
        if self.path.is_file():
            raise InputError(
                f"{self.path} already exists.",
                "A recording does not overwrite files.",
                "Choose another file name, or move the existing file.",
            )
        try:
            self._check_free_space()
        except OSError as error:
            raise InputError(
                f"Not enough disk space to record {self.path}.",
                f"Less than {MIN_FREE_BYTES >> 20} MB are free.",
                "Free disk space, or record to another disk.",
            ) from error
        self._open()
        return self

    def show(self, result: LiveResult) -> None:
        """Write a result. Disk errors end the recording instead of being raised."""
        if self._closed:
            return
        try:
            self._check_free_space()
            self._write(result)
        except (OSError, MdeError) as error:
            self._close(error)

    def __exit__(self, *_: object) -> None:
        self._close()

    def __str__(self) -> str:
        """Summarise the recording in one line."""
        return f"{self.path}: {self.frames} frames" if self.frames else f"{self.path}: nothing recorded"

    def _open(self) -> None:  # noqa: B027 - some recordings start with their first result
        """Create the output; raises MdeError."""

    @abstractmethod
    def _write(self, result: LiveResult) -> None:
        """Write a result and count it."""

    def _finish(self) -> None:  # noqa: B027 - some recordings hold nothing open
        """Close the output so that it is readable. Called once, also after `_write` has failed."""

    def _folder(self) -> Path:
        return self.path.parent

    def _check_free_space(self) -> None:
        if shutil.disk_usage(self._folder()).free < MIN_FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _close(self, error: Exception | None = None) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._finish()
        except (OSError, MdeError) as finish_error:
            error = error or finish_error
        if error is not None:
            self.problem = f"Recording has stopped: {_describe(error)} {self}."


def _describe(error: Exception) -> str:
    """Return the message of an error as sentences."""
    if isinstance(error, MdeError):
        return f"{error.what} {error.why}"
    return f"{error.strerror}." if isinstance(error, OSError) and error.strerror else f"{error}."
