"""Frames in, metres out: preprocessing, a session and postprocessing in one object."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from mirrordepth_edge.backends.base import Session
from mirrordepth_edge.backends.registry import open_session
from mirrordepth_edge.config import ModelConfig, SessionOptions
from mirrordepth_edge.manifest import read_checkpoint_info
from mirrordepth_edge.postprocess import DepthMap, Postprocessor
from mirrordepth_edge.preprocess import Frame, Preprocessor

MODELS_DIR = Path(__file__).parent / "models"
NANO_CHECKPOINT = MODELS_DIR / "nano.safetensors"
NANO_ONNX = {"fp32": MODELS_DIR / "nano.onnx", "fp16": MODELS_DIR / "nano.fp16.onnx"}
SHIPPED = {"nano": NANO_ONNX["fp32"], "nano.fp16": NANO_ONNX["fp16"]}
"""Models that are named rather than pathed."""


class DepthPredictor:
    """Metric depth of frames of any size.

    Args:
        session: an opened artefact.
        model: what it is.
        trained: False for random weights, whose depth means nothing.
    """

    def __init__(self, session: Session, model: ModelConfig, *, trained: bool = True) -> None:
        self.session = session
        self.model = model
        self.trained = trained
        (image,), (depth,) = session.inputs, session.outputs
        self._input, self._output = image.name, depth.name
        self._preprocess = Preprocessor(model.preprocess, "uint8" if image.dtype == "uint8" else "float")
        self._postprocess = Postprocessor()

    def __call__(self, frame: Frame) -> DepthMap:
        """Depth of one frame.

        Args:
            frame: uint8 RGB, shape `[H, W, 3]`.

        Returns:
            float32 `[H, W]`, metres. The array is reused: copy it to keep it past the next call.

        Raises:
            InputError: the frame is not uint8 RGB.
        """
        depth_m = self.session.infer({self._input: self._preprocess(frame)})[self._output]
        return self._postprocess(depth_m, (frame.shape[0], frame.shape[1]))

    def close(self) -> None:
        """Free the session."""
        self.session.close()

    def __enter__(self) -> DepthPredictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(model: str | Path = "nano", options: SessionOptions | None = None) -> DepthPredictor:
    """Open a model for prediction.

    Args:
        model: `nano` or `nano.fp16`, which ship with the package, or a `.onnx`, `.plan` or `.safetensors` file.
        options: device, threads and CLIP weights.

    Raises:
        InputError: the file cannot be used.
        MissingError: hardware or a package is missing.
    """
    path = model_path(model)
    session, manifest = open_session(path, options)
    if manifest is None:
        return DepthPredictor(session, read_checkpoint_info(path).model)
    return DepthPredictor(session, manifest.model, trained=manifest.trained)


def model_path(model: str | Path) -> Path:
    """The file behind a model's name: `nano` and `nano.fp16` are ONNX files that ship with the package."""
    return SHIPPED.get(str(model), Path(model))
