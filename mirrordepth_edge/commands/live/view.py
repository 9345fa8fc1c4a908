"""What `mde live` tells on the terminal while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirrordepth_edge.live.result import LiveResult


class StatusLine:
    """One line on the terminal that is kept up to date."""

    name = "status line"

    def __enter__(self) -> StatusLine:
        from rich.live import Live

        from mirrordepth_edge.commands.terminal import errors
        from mirrordepth_edge.live.loop import Ticker

        self._tick = Ticker()
        self._line = Live("measuring …", console=errors, auto_refresh=False, transient=True)
        self._line.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._line.stop()

    def show(self, result: LiveResult) -> None:
        if text := self._tick(result):
            self._line.update(text, refresh=True)

    def wants_to_quit(self) -> bool:
        return False
