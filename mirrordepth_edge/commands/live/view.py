"""What `mde live` shows while it runs: a window, or a line on the terminal."""

from __future__ import annotations

import cv2
from rich.live import Live

from mirrordepth_edge.camera.scale import PointAndType
from mirrordepth_edge.camera.scale_store import ScaleSetter
from mirrordepth_edge.commands.live.options import ViewOptions
from mirrordepth_edge.commands.live.scale import LiveScale
from mirrordepth_edge.commands.terminal import errors
from mirrordepth_edge.errors import MdeError, MissingError
from mirrordepth_edge.imaging.draw import GAP_PX, scale_bar, side_by_side
from mirrordepth_edge.imaging.postprocess import DepthMap, colourise
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.live.loop import Ticker
from mirrordepth_edge.live.recording.rerun import has_screen
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.predictor import DepthPredictor

TITLE = "mde live"
WINDOW_WIDTH_PX = 1400
QUIT_KEYS = (27, ord("q"))


def open_view(
    options: ViewOptions, limits_m: tuple[float, float], scale: LiveScale, predictor: DepthPredictor
) -> Window | StatusLine:
    """Return a window if one is wanted and there is a display, else a line on the terminal."""
    if options.web or options.no_window:
        return StatusLine()
    if not has_screen():
        errors.print("Neither DISPLAY nor WAYLAND_DISPLAY is set; running without a window. Use --web for a browser.")
        return StatusLine()
    return Window(limits_m, scale, predictor)


class StatusLine:
    """One line on the terminal, updated every second."""

    name = "status line"

    def __enter__(self) -> StatusLine:
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
    """Photo, depth in colours and the colour scale side by side, with rate and latency in the title.

    A click on a pixel, a typed distance and Enter set the scale of the camera.
    """

    name = "window"
    main_thread = True
    """OpenCV's windows must be used in the thread that created them."""

    def __init__(self, limits_m: tuple[float, float], scale: LiveScale, predictor: DepthPredictor) -> None:
        self._limits_m = limits_m
        self._scale, self._predictor = scale, predictor
        self._typing = PointAndType()
        self._setter: ScaleSetter | None = None
        self._depth_m: DepthMap | None = None
        self._bar: Frame | None = None
        self._canvas: Frame | None = None
        self._bgr: Frame | None = None

    def __enter__(self) -> Window:
        self._tick = Ticker()
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error as error:
            why = "This build has no window support, as in opencv-python-headless."
            raise MissingError("OpenCV cannot open a window.", why, "--no-window") from error
        cv2.setMouseCallback(TITLE, self._on_mouse)
        return self

    def __exit__(self, *_: object) -> None:
        cv2.destroyAllWindows()

    def show(self, result: LiveResult) -> None:
        height, width = result.frame.shape[:2]
        self._remember(result.depth_m)
        if self._bar is None or self._bar.shape[0] != height:
            self._bar = scale_bar(height, self._limits_m)
            sheet_width = 2 * width + self._bar.shape[1]
            cv2.resizeWindow(TITLE, WINDOW_WIDTH_PX, WINDOW_WIDTH_PX * height // sheet_width)
        images = result.frame, colourise(result.depth_m, self._limits_m), self._bar
        self._canvas = side_by_side(images, out=self._canvas)
        self._bgr = cv2.cvtColor(self._canvas, cv2.COLOR_RGB2BGR, dst=self._bgr)  # type: ignore[assignment]
        cv2.imshow(TITLE, self._bgr)  # type: ignore[arg-type]
        text = self._typing.prompt or self._tick(result)
        if text:
            cv2.setWindowTitle(TITLE, f"{TITLE}: {text}")

    def wants_to_quit(self) -> bool:
        key = cv2.waitKey(1) & 0xFF  # also lets the window draw itself
        if self._handle_typing(key):
            return False
        closed = self._canvas is not None and cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
        return closed or key in QUIT_KEYS

    def _remember(self, depth_m: DepthMap) -> None:
        """Keep the depth that is shown: a click refers to it."""
        if self._depth_m is None or self._depth_m.shape != depth_m.shape:
            self._depth_m = depth_m.copy()
            self._setter = self._scale.setter(self._predictor, (depth_m.shape[0], depth_m.shape[1]))
        else:
            self._depth_m[:] = depth_m

    def _on_mouse(self, event: int, x: int, y: int, flags: int, data: object) -> None:
        if event == cv2.EVENT_LBUTTONDOWN and self._depth_m is not None:
            height, width = self._depth_m.shape
            x_px = x if x < width else x - width - GAP_PX  # on the photo or on the depth beside it
            if 0 <= x_px < width and 0 <= y < height:
                self._typing.click(x_px, y)

    def _handle_typing(self, key: int) -> bool:
        """Handle a key while a distance is being typed. Return False if none is, so that keys keep their meaning."""
        if self._typing.prompt is None or self._setter is None or self._depth_m is None:
            return False
        try:
            point = self._typing.key(key)
            if point is not None:
                height, width = self._depth_m.shape
                scale = self._setter.add((point,), [self._depth_m], self._predictor.scale((height, width)))
                errors.print(f"scale: {scale}")
        except MdeError as error:
            errors.print(f"{error.what} {error.why} {error.cure}", style="yellow")
        return True
