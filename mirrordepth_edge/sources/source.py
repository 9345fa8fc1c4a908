"""The interface of all frame sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeVar

from mirrordepth_edge.imaging.preprocess import Frame

Source = TypeVar("Source", bound="FrameSource")


@dataclass(frozen=True)
class SourceState:
    """The state of a source, to show to the user."""

    kind: Literal["live", "stalled", "reconnecting"] = "live"
    """`stalled`: open, but no frames arrive. `reconnecting`: lost, and being opened again."""
    detail: str = ""
    """One sentence on what happened; empty while live."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


LIVE = SourceState()


class FrameSource(ABC):
    """A source of frames; a context manager.

    One thread calls `read`. `stop` and `state` may be used from any thread. `close` is called after the last `read`.
    """

    name: str
    """Name for the user, without credentials."""
    live: bool
    """True if frames arrive at their own rate (camera, stream), False if they wait to be read (file)."""
    may_return: bool = False
    """Whether opening the source again after a failure can help: True for cameras and streams."""
    rate_hz: float | None = None
    """Nominal frame rate; None if unknown."""
    length: int | None = None
    """Number of frames according to the file's header, which may be inexact; None if unknown."""
    faults: int = 0
    """Number of frames that could not be read, plus the times that the source was lost and reopened."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user that need no action, one sentence each, such as a mode that the camera changed or a
        damaged file. Complete once the source has ended."""
        return ()

    @property
    def state(self) -> SourceState:
        """The current state. Cheap; may be read from any thread."""
        return LIVE

    @abstractmethod
    def read(self, out: Frame | None = None) -> Frame | None:
        """Read the next frame. Returns within seconds even if none arrives.

        Args:
            out: uint8 `[H, W, 3]`; filled and returned if it has the frame's shape.

        Returns:
            uint8 RGB `[H, W, 3]`, which the source does not change afterwards; None at the end.

        Raises:
            InputError: nothing can be read, or a camera stopped.
        """

    def stop(self) -> None:  # noqa: B027 - most sources never wait for long
        """Make a waiting `read` return None soon. May be called from any thread."""

    def close(self) -> None:  # noqa: B027 - most sources hold no resources
        """Release the device or file."""

    def __enter__(self: Source) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
