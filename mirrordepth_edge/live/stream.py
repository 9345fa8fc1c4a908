"""Live depth for a robot's own loop: `for frame in mirrordepth_edge.stream("0")`."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.predictor import DepthPredictor, load
from mirrordepth_edge.sources.cameras import DEFAULTS, CameraOptions
from mirrordepth_edge.sources.latest import in_order, newest
from mirrordepth_edge.sources.open import open_source
from mirrordepth_edge.sources.reconnect import reconnecting
from mirrordepth_edge.sources.source import FrameSource


class DepthStream(Iterator[LiveResult]):
    """The newest depth, each time that it is asked for; a context manager.

    Takes over source and predictor, and closes them when it ends, is closed or is forgotten.
    """

    def __init__(self, source: FrameSource, predictor: DepthPredictor) -> None:
        self.source = source
        self.predictor = predictor
        self._results = _results(source, predictor)

    def __next__(self) -> LiveResult:
        """Wait for a frame that has not been seen yet, and predict its depth.

        Raises:
            InputError: the camera is lost.
        """
        return next(self._results)

    def close(self) -> None:
        """End it; the camera is free and no thread is left when this returns."""
        self._results.close()
        self.source.close()
        self.predictor.close()

    def __enter__(self) -> DepthStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def stream(
    source: str = "0",
    model: str | Path = "nano",
    *,
    camera: Camera | Lens | None = None,
    options: SessionOptions | None = None,
    capture: CameraOptions = DEFAULTS,
    reconnect: bool = False,
) -> DepthStream:
    """Depth of a camera, a stream or a video, frame after frame, for as long as the loop asks.

    A camera is read by a thread of its own: the newest frame wins, and a slow loop gets fewer frames, not older
    ones. A video file loses none. Leaving the loop, by `break` or by an exception, gives the camera back; `with
    stream(...) as frames:` does so where the stream is kept in a variable.

    >>> for frame in stream("0", camera=Lens(fov_deg=78)):
    ...     nearest_m = frame.depth_m[160:320].min()      # float32 [H, W], metres
    ...     age_s = time.time() - frame.captured_unix_ns / 1e9

    Args:
        source: a camera's number or device, a URL, a video file, or `synthetic`, as `mde live --source` takes it.
        model: `nano`, `nano.fp16`, or a `.onnx`, `.plan` or `.safetensors` file.
        camera: what the frames come from; the training camera where None.
        options: device, threads and CLIP weights.
        capture: size, rate, format and exposure that a camera is asked for.
        reconnect: wait for a camera or a stream that is lost, instead of raising.

    Returns:
        an iterator of `LiveResult`: frame, depth_m, when it was captured and how many frames were dropped so far.
        Arrays are reused: copy them to keep them past the next turn.

    Raises:
        MdeError: the model or the source cannot be used; see `load` and `open_source`.
    """
    with ExitStack() as opened:
        predictor = opened.enter_context(load(model, options, camera))
        opening = partial(open_source, source, capture)
        frames = DepthStream(reconnecting(opening) if reconnect else opening(), predictor)
        opened.pop_all()
    return frames


def _results(source: FrameSource, predictor: DepthPredictor) -> Generator[LiveResult, None, None]:
    # Apart from the class, so that the class is not kept alive by its own loop.
    number = 0
    with source, predictor, closing(newest(source) if source.live else in_order(source)) as captures:
        for capture in captures:
            if capture is None:
                continue
            begin_s = time.perf_counter()
            depth_m = predictor(capture.frame)
            end_s = time.perf_counter()
            yield LiveResult(
                frame=capture.frame,
                depth_m=depth_m,
                number=number,
                captured_unix_ns=capture.captured_unix_ns,
                latency_ms=(end_s - begin_s) * 1e3,
                age_ms=(end_s - capture.captured_s) * 1e3,
                dropped=capture.dropped,
            )
            number += 1
