"""The window of `mde live`: what it shows, and what clicks and keys do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirrordepth_edge.camera.scale import ScaleSetter
    from mirrordepth_edge.commands.live.scale import LiveScale
    from mirrordepth_edge.imaging.postprocess import DepthMap
    from mirrordepth_edge.imaging.preprocess import Frame
    from mirrordepth_edge.live.result import LiveResult
    from mirrordepth_edge.predictor import DepthPredictor

TITLE = "mde live"
WINDOW_WIDTH_PX = 1400
QUIT_KEYS = (27, ord("q"))


class Window:
    """Photo, depth in colours and their scale, side by side; rate and latency in the title.

    A click on a pixel, a distance on the keyboard and Enter set the scale for this camera.
    """

    name = "window"
    main_thread = True
    """OpenCV's windows belong to the thread that made them."""

    def __init__(self, limits_m: tuple[float, float], scale: LiveScale, predictor: DepthPredictor) -> None:
        from mirrordepth_edge.camera.scale import PointAndType

        self._limits_m = limits_m
        self._scale, self._predictor = scale, predictor
        self._typing = PointAndType()
        self._setter: ScaleSetter | None = None
        self._depth_m: DepthMap | None = None
        self._bar: Frame | None = None
        self._canvas: Frame | None = None
        self._bgr: Frame | None = None

    def __enter__(self) -> Window:
        import cv2

        from mirrordepth_edge.errors import MissingError
        from mirrordepth_edge.live.loop import Ticker

        self._tick = Ticker()
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error as error:
            why = "It was built without windows, as opencv-python-headless is."
            raise MissingError("OpenCV cannot open a window.", why, "--no-window") from error
        cv2.setMouseCallback(TITLE, self._on_mouse)
        return self

    def __exit__(self, *_: object) -> None:
        import cv2

        cv2.destroyAllWindows()

    def show(self, result: LiveResult) -> None:
        import cv2

        from mirrordepth_edge.imaging.draw import scale_bar, side_by_side
        from mirrordepth_edge.imaging.postprocess import colourise

        height, width = result.frame.shape[:2]
        self._remember(result.depth_m)
        if self._bar is None or self._bar.shape[0] != height:
            self._bar = scale_bar(height, self._limits_m)
            width = 2 * width + self._bar.shape[1]
            cv2.resizeWindow(TITLE, WINDOW_WIDTH_PX, WINDOW_WIDTH_PX * height // width)
        pictures = result.frame, colourise(result.depth_m, self._limits_m), self._bar
        self._canvas = side_by_side(pictures, out=self._canvas)
        self._bgr = cv2.cvtColor(self._canvas, cv2.COLOR_RGB2BGR, dst=self._bgr)  # type: ignore[assignment]
        cv2.imshow(TITLE, self._bgr)  # type: ignore[arg-type]
        text = self._typing.prompt or self._tick(result)
        if text:
            cv2.setWindowTitle(TITLE, f"{TITLE}: {text}")

    def _remember(self, depth_m: DepthMap) -> None:
        """Keep what is shown: a click is on that."""
        if self._depth_m is None or self._depth_m.shape != depth_m.shape:
            self._depth_m = depth_m.copy()
            self._setter = self._scale.setter((depth_m.shape[0], depth_m.shape[1]))
        else:
            self._depth_m[:] = depth_m

    def _on_mouse(self, event: int, x: int, y: int, flags: int, data: object) -> None:
        import cv2

        from mirrordepth_edge.imaging.draw import GAP_PX

        if event == cv2.EVENT_LBUTTONDOWN and self._depth_m is not None:
            height, width = self._depth_m.shape
            x_px = x if x < width else x - width - GAP_PX  # on the photo or on its depth
            if 0 <= x_px < width and 0 <= y < height:
                self._typing.click(x_px, y)

    def _type(self, key: int) -> bool:
        """Take a key that belongs to a distance; False where keys mean what they always do."""
        from mirrordepth_edge.commands.terminal import errors
        from mirrordepth_edge.errors import MdeError

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

    def wants_to_quit(self) -> bool:
        import cv2

        key = cv2.waitKey(1) & 0xFF  # also lets the window draw itself
        if self._type(key):
            return False
        closed = self._canvas is not None and cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
        return closed or key in QUIT_KEYS
