"""Live depth for a robot's own loop: `for frame in mirrordepth_edge.stream("0")`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from mirrordepth_edge.artefact import model_path
from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.camera.scale_store import CameraScales
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.imaging.temporal_filter import TemporalFilterConfig
from mirrordepth_edge.live.loop import predictions
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.predictor import DepthPredictor, load
from mirrordepth_edge.sources.cameras import DEFAULTS, CameraOptions
from mirrordepth_edge.sources.open import open_source
from mirrordepth_edge.sources.reconnect import reconnecting
from mirrordepth_edge.sources.source import FrameSource


class DepthStream(Iterator[LiveResult]):
    """An iterator over the newest depth; a context manager.

    It takes over the source and the predictor, and closes both when it ends, is closed or is garbage-collected.
    """

    def __init__(self, source: FrameSource, predictor: DepthPredictor) -> None:
        self.source = source
        self.predictor = predictor
        self._results = _results(source, predictor)

    def __next__(self) -> LiveResult:
        """Wait for a new frame and predict its depth.

        Raises:
            InputError: the camera is lost.
        """
        return next(self._results)

    def close(self) -> None:
        """End the stream. When this returns, the camera is released and no thread is left."""
        self._results.close()
        self.source.close()
        self.predictor.close()

    def __enter__(self) -> DepthStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # A `for` loop over a temporary stream ends without `close`.
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
    temporal_filter: bool = True,
    stored_scale: bool = True,
) -> DepthStream:
    """Predict the depth of a camera, a stream or a video, frame after frame, for as long as the loop asks.

    This is the loop of `mde live`. A camera is read by its own thread and the newest frame wins: a slow loop gets fewer
    frames, not older ones. No frame of a video file is lost. Leaving the loop, by `break` or by an exception, releases
    the camera; use `with stream(...) as frames:` if a variable holds the stream.

    >>> for frame in stream("0", camera=Lens(fov_deg=78)):
    ...     nearest_m = frame.depth_m[160:320].min()      # float32 [H, W], metres
    ...     age_s = time.time() - frame.captured_unix_ns / 1e9

    Args:
        source: a camera's number or device, a URL, a video file, or `synthetic`, as for `mde live --source`.
        model: `nano`, `nano.fp16`, or a `.onnx`, `.plan` or `.safetensors` file.
        camera: the camera that the frames come from; the training camera if None.
        options: device, threads and CLIP weights.
        capture: size, rate, format and exposure to request from a camera.
        reconnect: wait for a lost camera or stream instead of raising.
        temporal_filter: reduce flicker, as `mde live` does without `--no-stabilise`. False returns depth as predicted.
        stored_scale: apply the scale that `mde live` stored for this source, frame size and model, if there is one; it
            takes precedence over `camera`. False ignores it, as `mde live --no-scale` does.

    Returns:
        An iterator of `LiveResult`: frame, depth_m, capture time and the number of dropped frames. Arrays are reused:
        copy them to keep them past the next iteration.

    Raises:
        MdeError: the model or the source cannot be used; see `load` and `open_source`.
    """
    with ExitStack() as stack:
        predictor = load(
            model,
            options,
            camera,
            known_scale=CameraScales(source, model_path(model)).factor if stored_scale else lambda size_hw: None,
            temporal_filter=TemporalFilterConfig() if temporal_filter else None,
        )
        stack.enter_context(predictor)
        factory = partial(open_source, source, capture)
        frames = DepthStream(reconnecting(factory) if reconnect else factory(), predictor)
        # From here on, the stream closes the predictor.
        stack.pop_all()
    return frames


def _results(source: FrameSource, predictor: DepthPredictor) -> Generator[LiveResult, None, None]:
    # A function, not a method: a generator that refers to the stream would keep it from being garbage-collected.
    with source, predictor, closing(predictions(source, predictor)) as steps:
        for step in steps:
            if step is not None:
                yield step.result
