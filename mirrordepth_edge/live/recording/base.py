"""What every recording shares: when it stops, and how it reports a problem."""

from __future__ import annotations

import errno
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

import cv2

from mirrordepth_edge.errors import InputError, MdeError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.support.files import ensure_folder

ROOM_BYTES = 64 * 2**20
"""Recordings stop when less than this is free: enough to close them, and to leave the machine working."""


JPEG_QUALITY = 90


class Recording(ABC):
    """An output that keeps results. What goes wrong while it runs is told by `problem`, and ends it.

    Args:
        path: where to; nothing may be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.frames = 0
        """Results kept so far."""
        self.problem: str | None = None
        """Why nothing more is recorded, in words; None while all is well."""
        self._closed = False

    def __enter__(self) -> Recording:
        """
        Raises:
            MdeError: nothing can be recorded there.
        """
        ensure_folder(self._folder())
        if self.path.is_file():
            raise InputError(
                f"{self.path} is there already.",
                "A recording is not written over another one.",
                "Name another file, or move this one away.",
            )
        try:
            self._check_room()
        except OSError as error:
            raise InputError(
                f"There is no room to record {self.path}.",
                f"Less than {ROOM_BYTES >> 20} MB are free there.",
                "Free space, or name another place.",
            ) from error
        self._open()
        return self

    def show(self, result: LiveResult) -> None:
        """Keep a result; never raises for what the disk does."""
        if self._closed:
            return
        try:
            self._check_room()
            self._keep(result)
        except (OSError, MdeError) as error:
            self._close(error)

    def __exit__(self, *_: object) -> None:
        self._close()

    def __str__(self) -> str:
        """What came of it, in a line."""
        return f"{self.path}: {self.frames} frames" if self.frames else f"{self.path}: nothing recorded"

    @abstractmethod
    def _open(self) -> None:
        """Begin; raises MdeError."""

    @abstractmethod
    def _keep(self, result: LiveResult) -> None:
        """Write a result and count it."""

    @abstractmethod
    def _finish(self) -> None:
        """Close what was begun, readable; called once, also after `_keep` has failed."""

    def _folder(self) -> Path:
        return self.path.parent

    def _check_room(self) -> None:
        if shutil.disk_usage(self._folder()).free < ROOM_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _close(self, error: Exception | None = None) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._finish()
        except (OSError, MdeError) as failed:
            error = error or failed
        if error is not None:
            self.problem = f"Recording has stopped: {_in_words(error)} {self}."


def jpeg(frame: Frame) -> bytes:
    """uint8 RGB `[H, W, 3]` as a JPEG."""
    bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def _in_words(error: Exception) -> str:
    if isinstance(error, MdeError):
        return f"{error.what} {error.why}"
    return f"{error.strerror}." if isinstance(error, OSError) and error.strerror else f"{error}."
