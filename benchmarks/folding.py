"""Measure the benefit of folding: the exported network against the complete model.

    python benchmarks/folding.py [--frames 60] [--threads 2]

The complete model is that of training: the text tower on the mirror, every block of the image tower, and separate
nodes for scaling and normalising pixels. Weights are random. ONNX Runtime folds constant subgraphs when it opens a
file, which includes most of the text tower. The complete model is therefore timed twice: with the mirror as a constant,
and as an input, which no runtime can fold. All are interleaved, frame by frame.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from rich.console import Console
from torch import Tensor

from mirrordepth_edge.bench.measure import time_interleaved, warm_up
from mirrordepth_edge.bench.stats import ratio_interval
from mirrordepth_edge.config import PRESETS, ExportConfig
from mirrordepth_edge.export.parity import reference_frames
from mirrordepth_edge.export.trace import export_onnx
from mirrordepth_edge.imaging.preprocess import Preprocessor
from mirrordepth_edge.model.clip import RANDOM_PREFIX, Taps
from mirrordepth_edge.model.network import DepthNetwork, create_network, normalise_pixels

console = Console(highlight=False, soft_wrap=True)


class CompleteModel(torch.nn.Module):
    """Maps uint8 RGB `[1, H, W, 3]` to metres `[1, H, W]` and the CLIP feature of the image, without folding."""

    def __init__(self, network: DepthNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, mirror: Tensor | None = None) -> tuple[Tensor, Tensor]:
        network = self.network
        seen = network.clip.visual.forward_intermediates(
            normalise_pixels(image, network.config.preprocess),
            indices=list(network.config.taps),
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        prefixes = seen["image_intermediates_prefix"]
        pairs = zip(prefixes, seen["image_intermediates"], strict=True)
        taps = Taps([torch.cat(pair, dim=1) for pair in pairs][::-1], prefix=prefixes[0].shape[1])
        text = network.text(network.mirror() if mirror is None else mirror)
        return network.decoder(taps, text, network.config.size_hw), seen["image_features"]


def export_complete(network: DepthNetwork, path: Path, *, mirror_is_input: bool) -> None:
    """Export the complete model to ONNX."""
    frames = torch.zeros(1, *network.config.size_hw, 3, dtype=torch.uint8)
    inputs = (frames, network.mirror().detach()) if mirror_is_input else (frames,)
    names = ["image", "mirror"][: len(inputs)]
    with torch.no_grad():
        torch.onnx.export(
            CompleteModel(network).eval(), inputs, path, dynamo=True, opset_version=18, input_names=names, verbose=False
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    arguments = parser.parse_args()

    network = create_network(replace(PRESETS["vitb16"], pretrained=f"{RANDOM_PREFIX}0")).eval()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = arguments.threads
    settings.add_session_config_entry(
        "session.force_spinning_stop", "1"
    )  # otherwise its threads would spin while the next session is timed
    sessions: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for name, mirror_is_input in (("complete, mirror as input", True), ("complete, mirror as constant", False)):
            console.print(f"exporting: {name}")
            export_complete(network, path, mirror_is_input=mirror_is_input)
            sessions[name] = onnxruntime.InferenceSession(path, settings)
        console.print("exporting: folded (mde export)")
        onnx.save(export_onnx(network, ExportConfig()), path)
        sessions["folded"] = onnxruntime.InferenceSession(path, settings)

    prepare = Preprocessor(network.config.preprocess)
    images = [prepare(frame).copy() for frame in reference_frames()]
    mirror = network.mirror().detach().numpy()

    def step(session: Any) -> Callable[[int], Any]:
        extra = {"mirror": mirror} if len(session.get_inputs()) == 2 else {}
        return lambda index: session.run(None, {"image": images[index % len(images)], **extra})

    steps = {name: step(session) for name, session in sessions.items()}
    expected = steps["complete, mirror as input"](0)[0]
    for name, run in steps.items():
        worst = float(np.abs(run(0)[0] / expected - 1).max())
        console.print(f"{name}: worst pixel {worst:.1e} relative")
        assert worst < 1e-4, "the models differ"
        warm_up([run], 3)
    times = dict(zip(steps, time_interleaved([[run] for run in steps.values()], arguments.frames), strict=True))
    folded_ms = times.pop("folded")[:, 0]
    console.print(f"folded: median {np.median(folded_ms):.1f} ms")
    for name, complete_ms in times.items():
        ratio = ratio_interval(folded_ms, complete_ms[:, 0], paired=True)
        console.print(f"{name}: median {np.median(complete_ms):.1f} ms; folded takes {ratio.describe()}")


if __name__ == "__main__":
    main()
