"""Frames in, metres out: preprocessing, a session and postprocessing in one object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType

import numpy as np

from mirrordepth_edge.artefact import Artefact
from mirrordepth_edge.backends.base import Arrays, Session
from mirrordepth_edge.backends.registry import open_artefact, open_session
from mirrordepth_edge.camera.model import Camera, Lens, scale_for
from mirrordepth_edge.config import ModelConfig, NormalisedFocal, SessionOptions, SizeHW
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.imaging.postprocess import DepthMap, Postprocessor
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor
from mirrordepth_edge.imaging.temporal_filter import Stabiliser


class DepthPredictor:
    """Metric depth of frames of any size.

    Args:
        session: an opened artefact.
        model: what it is.
        trained: False for random weights, whose depth means nothing.
        camera: what the frames come from, where that is not the camera that the model was trained with;
            metres are scaled to it (`camera.scale_for`).
        batch: frames that the session takes at once. More than one are for measuring the network: all of them are
            the frame given, and the depth is that of the first.

    Raises:
        OptionError: a camera is given, and the model does not say with which one it was trained; or the session
            takes another number of frames.
    """

    def __init__(
        self,
        session: Session,
        model: ModelConfig,
        *,
        trained: bool = True,
        camera: Camera | Lens | None = None,
        batch: int = 1,
    ) -> None:
        self.session = session
        self.model = model
        self.trained = trained
        self.camera = camera
        self.on_camera: Callable[[Camera, float], object] | None = None
        """Called at the first frame of each size with its camera and with what metres are multiplied by."""
        (image,), (depth,) = session.inputs, session.outputs
        if image.shape[0] != batch:
            raise OptionError(
                f"The model takes {image.shape[0]} frames at once, and is given {batch}.",
                "A file made for a batch is for measuring the network alone; a camera gives one frame at a time.",
                "Use a model for one frame, as mde export makes it.",
            )
        self.batch = batch
        self._input, self._output = image.name, depth.name
        self._preprocess = Preprocessor(model.preprocess, image.io)
        self._postprocess = Postprocessor()
        self.stabiliser: Stabiliser | None = None
        """Smooths depth over time, for frames of one video in order."""
        self.clock: Callable[[], float] = perf_counter
        """Seconds, asked once for each frame that is steadied; a file's frames have times of their own."""
        self.known_scale: Callable[[SizeHW], float | None] = lambda size_hw: None
        """Asked at the first frame of each size for a factor that was measured, which goes before the camera's."""
        self.scales: dict[SizeHW, float] = {}
        """What the network's metres are multiplied by in frames of each size, as far as they came; may be set."""
        # Not in place: the array belongs to the session, which need not write all of it anew.
        self._scaled_m = np.empty(depth.shape, np.float32)
        if camera is not None:
            _require_focal(model)

    def __call__(self, frame: Frame) -> DepthMap:
        """Depth of one frame.

        Args:
            frame: uint8 RGB, shape `[H, W, 3]`.

        Returns:
            float32 `[H, W]`, metres. The array is reused: copy it to keep it past the next call.

        Raises:
            InputError: the frame is not uint8 RGB.
            OptionError: the frame is not of the camera's shape.
        """
        return self.finish(self.session.infer(self.prepare(frame)), (frame.shape[0], frame.shape[1]))

    def prepare(self, frame: Frame) -> Arrays:
        """What the session is fed for a frame; reused."""
        image = self._preprocess(frame)
        return {self._input: image if self.batch == 1 else image.repeat(self.batch, axis=0)}

    def finish(self, outputs: Arrays, size_hw: SizeHW) -> DepthMap:
        """Metres at `size_hw` from what the session answered; reused."""
        depth_m = outputs[self._output]
        if self.stabiliser is not None:
            depth_m = self.stabiliser(self._preprocess.image, depth_m[0], self.clock())[None]
        scale = self.scale(size_hw)
        if scale != 1.0:
            depth_m = np.multiply(depth_m, scale, out=self._scaled_m)
        return self._postprocess(depth_m, size_hw)

    def scale(self, size_hw: SizeHW) -> float:
        """What the network's metres are multiplied by in frames of this size: what was measured, else what follows
        from the camera, else 1.

        Raises:
            OptionError: the camera has no frames of this shape.
        """
        if size_hw not in self.scales:
            known = self.known_scale(size_hw)
            self.scales[size_hw] = self._camera_scale(size_hw) if known is None else known
        return self.scales[size_hw]

    def _camera_scale(self, size_hw: SizeHW) -> float:
        if self.camera is None:
            return 1.0
        camera = self.camera.at(size_hw)
        scale = scale_for(_require_focal(self.model), camera)
        if self.on_camera is not None:
            self.on_camera(camera, scale)
        return scale

    def close(self) -> None:
        """Free the session."""
        self.session.close()

    def __enter__(self) -> DepthPredictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(
    model: str | Path | Artefact = "nano",
    options: SessionOptions | None = None,
    camera: Camera | Lens | None = None,
    batch: int = 1,
) -> DepthPredictor:
    """Open a model for prediction.

    Args:
        model: `nano` or `nano.fp16`, which ship with the package, or a `.onnx`, `.plan` or `.safetensors` file, or one
            that is open already.
        options: device, threads and CLIP weights.
        camera: what the frames come from; the training camera where None. `camera.Camera` and `camera.Lens`
            describe one, `camera.read_camera` takes it from a calibration.
        batch: frames that the file was made to take at once (`DepthPredictor`).

    Raises:
        InputError: the file cannot be used.
        MissingError: hardware or a package is missing.
        OptionError: a camera is given, and the model does not say with which one it was trained; or the file takes
            another number of frames at once.
    """
    artefact = open_artefact(model, trust=options is not None and options.trust)
    session, manifest = open_session(artefact, options)
    try:
        if manifest is None:
            _, height, width = session.inputs[0].size
            described = replace(artefact.checkpoint_info.model, size_hw=(height, width))
            return DepthPredictor(session, described, camera=camera, batch=batch)
        return DepthPredictor(session, manifest.model, trained=manifest.trained, camera=camera, batch=batch)
    except BaseException:
        session.close()
        raise


def _require_focal(model: ModelConfig) -> NormalisedFocal:
    if model.focal is None:
        raise OptionError(
            f"The model ({model.preset}) does not say with which camera it was trained.",
            "Metres follow from the ratio of the two focal lengths, and its file has no focal.",
            "Leave the camera out, or train with focal = [fx / width, fy / height] under [model] in a recipe.",
        )
    return model.focal
