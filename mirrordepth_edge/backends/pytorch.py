"""PyTorch: runs a checkpoint directly, as the reference for all other backends."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends.base import Arrays, Available, CheckedSession, Probe, empty_outputs, import_checked
from mirrordepth_edge.config import ExportConfig, SessionOptions
from mirrordepth_edge.errors import MissingError
from mirrordepth_edge.machine.unavailable import Unavailable
from mirrordepth_edge.manifest import Manifest

NAME: Final = "torch"
INSTALL = "pip install 'mirrordepth-edge[export]'"
REPAIR = "Install PyTorch for this machine: https://pytorch.org/get-started/locally (.onnx and engines run without it)"


def probe() -> Probe:
    """Check that PyTorch can be imported and open_clip is installed, and which GPU PyTorch uses."""

    def load() -> Available:
        import torch

        return Available(version=str(torch.__version__), devices=("cpu", *_gpus(torch)))

    # Importing open_clip as well would take seconds.
    return import_checked(("torch", "open_clip"), load, install=INSTALL, repair=REPAIR)


def _gpus(torch: Any) -> tuple[str, ...]:
    """The GPU that PyTorch uses; none if its CUDA does not start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # is_available() warns if the driver is too old
        try:
            return (torch.cuda.get_device_name(0),) if torch.cuda.is_available() else ()
        except Exception:
            return ()


class TorchSession(CheckedSession):
    """A checkpoint in FP32 eager mode: uint8 frames in, metres out, like the exported network."""

    backend = NAME
    precision = "fp32"

    def __init__(self, path: Path, options: SessionOptions) -> None:
        if options.yields:  # OpenMP reads it once, when PyTorch loads
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch

        from mirrordepth_edge.manifest import input_spec, output_spec
        from mirrordepth_edge.model.checkpoint import load_checkpoint

        network, _ = load_checkpoint(path, clip_weights=options.clip_weights, size_hw=options.network_hw)
        model, export = network.config, ExportConfig(batch=options.batch or 1)
        self.inputs, self.outputs = (input_spec(model, export),), (output_spec(model, export),)
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
        with torch.no_grad():  # a constant, as in the exported model
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
    problem = probe()
    if isinstance(problem, Unavailable):
        raise MissingError("Checkpoints need PyTorch.", problem.reason, problem.cure)
    return TorchSession(path, options)
