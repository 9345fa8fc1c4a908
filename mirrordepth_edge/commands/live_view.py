"""What `mde live` shows: a window, or a line on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirrordepth_edge.live.pipeline import LiveResult
    from mirrordepth_edge.preprocess import Frame

TITLE = "mde live"
WINDOW_WIDTH_PX = 1400
QUIT_KEYS = (27, ord("q"))


class StatusLine:
    """One line on the terminal that is kept up to date."""

    def __enter__(self) -> StatusLine:
        from rich.live import Live

        from mirrordepth_edge.commands.terminal import errors
        from mirrordepth_edge.live.pipeline import Ticker

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


class Window:
    """Photo, depth in colours and their scale, side by side; rate and latency in the title."""

    def __init__(self, limits_m: tuple[float, float]) -> None:
        self._limits_m = limits_m
        self._bar: Frame | None = None
        self._canvas: Frame | None = None
        self._bgr: Frame | None = None

    def __enter__(self) -> Window:
        import cv2

        from mirrordepth_edge.errors import MissingError
        from mirrordepth_edge.live.pipeline import Ticker

        self._tick = Ticker()
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error as error:
            why = "It was built without windows, as opencv-python-headless is."
            raise MissingError("OpenCV cannot open a window.", why, "--no-window") from error
        return self

    def __exit__(self, *_: object) -> None:
        import cv2

        cv2.destroyAllWindows()

    def show(self, result: LiveResult) -> None:
        import cv2

        from mirrordepth_edge.draw import scale_bar, side_by_side
        from mirrordepth_edge.postprocess import colourise

        height, width = result.frame.shape[:2]
        if self._bar is None or self._bar.shape[0] != height:
            self._bar = scale_bar(height, self._limits_m)
            width = 2 * width + self._bar.shape[1]
            cv2.resizeWindow(TITLE, WINDOW_WIDTH_PX, WINDOW_WIDTH_PX * height // width)
        pictures = result.frame, colourise(result.depth_m, self._limits_m), self._bar
        self._canvas = side_by_side(pictures, out=self._canvas)
        self._bgr = cv2.cvtColor(self._canvas, cv2.COLOR_RGB2BGR, dst=self._bgr)  # type: ignore[assignment]
        cv2.imshow(TITLE, self._bgr)  # type: ignore[arg-type]
        if text := self._tick(result):
            cv2.setWindowTitle(TITLE, f"{TITLE}: {text}")

    def wants_to_quit(self) -> bool:
        import cv2

        key = cv2.waitKey(1) & 0xFF  # also lets the window draw itself
        closed = self._canvas is not None and cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
        return closed or key in QUIT_KEYS
