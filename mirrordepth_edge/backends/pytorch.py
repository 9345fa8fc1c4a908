"""PyTorch: the training model itself, straight from a checkpoint; the reference for all others."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends.base import Arrays, Available, CheckedSession, Missing, Probe, empty_outputs
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import MissingError
from mirrordepth_edge.manifest import Manifest

NAME: Final = "torch"
SUFFIXES: Final = (".safetensors",)
INSTALL = "pip install 'mirrordepth-edge[export]'"


def probe() -> Probe:
    """Whether PyTorch and open_clip are installed, and whether PyTorch sees a GPU."""
    for module in ("torch", "open_clip"):
        if find_spec(module) is None:
            return Missing(reason=f"the package {module} is not installed", cure=INSTALL)
    import torch

    gpus = (torch.cuda.get_device_name(0),) if torch.cuda.is_available() else ()
    return Available(version=torch.__version__, devices=("cpu", *gpus))


class TorchSession(CheckedSession):
    """A checkpoint run eagerly in FP32, uint8 frames in, metres out, as the exported network has it."""

    backend = NAME
    precision = "fp32"

    def __init__(self, path: Path, options: SessionOptions) -> None:
        import torch

        from mirrordepth_edge.core.checkpoint import load_checkpoint
        from mirrordepth_edge.deploy.export import input_spec, output_spec

        network, info = load_checkpoint(path, clip_weights=options.clip_weights)
        self.inputs, self.outputs = (input_spec(info.model, "uint8"),), (output_spec(info.model),)
        wants_gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
        if wants_gpu and not torch.cuda.is_available():
            raise MissingError("PyTorch cannot use a GPU here.", "torch.cuda.is_available() is False.", "--device cpu")
        self._torch_device = torch.device("cuda" if wants_gpu else "cpu")
        self.device = torch.cuda.get_device_name(0) if wants_gpu else "cpu"
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.model = info.model
        self._network = network.to(self._torch_device)
        self._mean = torch.tensor(info.model.mean, device=self._torch_device)
        self._std = torch.tensor(info.model.std, device=self._torch_device)
        self._results = empty_outputs(self.outputs)

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        import torch

        self.check(feeds)
        with torch.no_grad():
            pixels = torch.from_numpy(feeds[self.inputs[0].name]).to(self._torch_device)
            images = ((pixels.float() / 255 - self._mean) / self._std).permute(0, 3, 1, 2).contiguous()
            depth_m = self._network(images)
        np.copyto(self._results[self.outputs[0].name], depth_m.cpu().numpy())
        return self._results


def open(path: Path, manifest: Manifest | None, options: SessionOptions) -> TorchSession:  # noqa: A001
    """Open a checkpoint."""
    missing = probe()
    if isinstance(missing, Missing):
        raise MissingError("Checkpoints need PyTorch.", missing.reason, missing.cure)
    return TorchSession(path, options)
