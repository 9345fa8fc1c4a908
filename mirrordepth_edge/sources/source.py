"""What every source of frames is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from mirrordepth_edge.imaging.preprocess import Frame


@dataclass(frozen=True)
class SourceState:
    """How a source is doing, for people to see."""

    kind: Literal["live", "stalled", "reconnecting"] = "live"
    """`stalled`: it is open and silent. `reconnecting`: it was lost, and is tried again and again."""
    detail: str = ""
    """What happened, in a sentence; empty while live."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


LIVE = SourceState()


class FrameSource(ABC):
    """Where frames come from; a context manager.

    One thread reads. `stop` and `state` are for other threads; `close` comes when nobody reads any more.
    """

    name: str
    """What the user sees, without credentials."""
    live: bool
    """True where frames appear at their own rate (camera, stream), False where they wait (file)."""
    may_return: bool = False
    """Once it has failed, it may work again when it is opened anew: cameras and streams."""
    rate_hz: float | None = None
    """Frames per second as the source declares it; None where it does not."""
    length: int | None = None
    """Frames in a video file as its header declares it, which may be off; None where unknown."""
    faults: int = 0
    """Frames so far that could not be read, and times that the source was lost and came back."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know and need not act on, a sentence each: another mode than was asked for, a file
        that broke off. Complete when the source has ended."""
        return ()

    @property
    def state(self) -> SourceState:
        """How it is doing now; cheap, and from any thread."""
        return LIVE

    @abstractmethod
    def read(self, out: Frame | None = None) -> Frame | None:
        """The next frame. Returns within seconds where none comes.

        Args:
            out: uint8 `[H, W, 3]`, filled and returned if it has the frame's shape.

        Returns:
            uint8 RGB `[H, W, 3]`, which the source does not touch again, or None at the end.

        Raises:
            InputError: nothing can be read, or a camera stopped.
        """

    def stop(self) -> None:  # noqa: B027 - most sources do not wait for long
        """Make a `read` that waits return soon, with None; from any thread."""

    def close(self) -> None:  # noqa: B027 - most sources hold nothing
        """Give the device or file back."""

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
