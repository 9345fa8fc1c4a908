"""PyTorch: the training model itself, straight from a checkpoint; the reference for all others."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends.base import Arrays, Available, CheckedSession, Missing, Probe, empty_outputs
from mirrordepth_edge.config import ExportConfig, SessionOptions
from mirrordepth_edge.errors import MissingError
from mirrordepth_edge.manifest import Manifest

NAME: Final = "torch"
INSTALL = "pip install 'mirrordepth-edge[export]'"
REPAIR = (
    "Install the PyTorch for this machine: https://pytorch.org/get-started/locally (a Jetson runs .onnx and engines)"
)


def probe() -> Probe:
    """Whether PyTorch imports and open_clip is installed, and whether PyTorch sees a GPU."""
    try:
        for module in ("torch", "open_clip"):  # open_clip takes seconds to import
            if find_spec(module) is None:
                return Missing(reason=f"the package {module} is not installed", cure=INSTALL)
        import torch

        return Available(version=str(torch.__version__), devices=("cpu", *_gpus(torch)))
    except Exception as error:  # OSError: made for another CUDA; anything else that is broken
        return Missing(reason=f"import torch: {error!r}", cure=REPAIR)


def _gpus(torch: Any) -> tuple[str, ...]:
    """The GPU that PyTorch works on; none where its CUDA does not start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a driver that is too old, and says False
        try:
            return (torch.cuda.get_device_name(0),) if torch.cuda.is_available() else ()
        except Exception:
            return ()


class TorchSession(CheckedSession):
    """A checkpoint run eagerly in FP32, uint8 frames in, metres out, as the exported network has it."""

    backend = NAME
    precision = "fp32"

    def __init__(self, path: Path, options: SessionOptions) -> None:
        if options.yields:  # read once, when PyTorch loads OpenMP
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch

        from mirrordepth_edge.manifest import input_spec, output_spec
        from mirrordepth_edge.model.checkpoint import load_checkpoint

        network, _ = load_checkpoint(path, clip_weights=options.clip_weights, size_hw=options.network_hw)
        model, shaped = network.config, ExportConfig(batch=options.batch or 1)
        self.inputs, self.outputs = (input_spec(model, shaped),), (output_spec(model, shaped),)
        wants_gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
        if wants_gpu and not torch.cuda.is_available():
            raise MissingError("PyTorch cannot use a GPU here.", "torch.cuda.is_available() is False.", "--device cpu")
        self.version = str(torch.__version__)
        self._torch_device = torch.device("cuda" if wants_gpu else "cpu")
        self.device = torch.cuda.get_device_name(0) if wants_gpu else "cpu"
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._network = network.to(self._torch_device)
        self._preprocess = model.preprocess
        with torch.no_grad():  # a constant, as in every other form of the model
            self._text_feature = self._network.text_feature()
        self._results = empty_outputs(self.outputs)

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        import torch

        from mirrordepth_edge.model.network import normalise_pixels

        self.check(feeds)
        with torch.no_grad():
            pixels = torch.from_numpy(feeds[self.inputs[0].name]).to(self._torch_device)
            taps = self._network.tower(normalise_pixels(pixels, self._preprocess))
            depth_m = self._network.decoder(taps, self._text_feature, self._preprocess.size_hw)
        np.copyto(self._results[self.outputs[0].name], depth_m.cpu().numpy())
        return self._results


def open(path: Path, manifest: Manifest | None, options: SessionOptions) -> TorchSession:  # noqa: A001
    """Open a checkpoint."""
    missing = probe()
    if isinstance(missing, Missing):
        raise MissingError("Checkpoints need PyTorch.", missing.reason, missing.cure)
    return TorchSession(path, options)
