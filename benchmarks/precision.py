"""Compare the precisions of a model: accuracy, size and latency, on the same frames in one run.

    python benchmarks/precision.py nano --calib office --root FOLDER
    python benchmarks/precision.py vitb16 --calib office

`nano` is the shipped model. `vitb16` has random weights with outlier channels as in CLIP (`outliers.py`), so that it is
as sensitive to quantisation as a trained ViT; its depth is meaningless and is compared with FP32's. Latencies are of
ONNX Runtime on this CPU, interleaved frame by frame. It simulates INT8 for GPUs in floating point, which is slow and
not representative of a GPU; the table states instead whether TensorRT for RTX builds the engine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from outliers import with_outliers, with_varied_depth

from mirrordepth_edge.artefact import NANO_ONNX, Artefact
from mirrordepth_edge.backends.onnxruntime import OnnxRuntimeSession
from mirrordepth_edge.bench.measure import time_interleaved
from mirrordepth_edge.commands.parameters import data_config
from mirrordepth_edge.config import DataKind, ExportConfig, QuantiseConfig, SessionOptions
from mirrordepth_edge.data.choose import CONVENTIONS, choose_dataset, depth_limits_on, kind_of
from mirrordepth_edge.data.sample import Selected
from mirrordepth_edge.engines.build import build_engine, plan_build
from mirrordepth_edge.errors import MdeError
from mirrordepth_edge.evaluation.evaluate import Protocol
from mirrordepth_edge.export.accuracy import GateFrames
from mirrordepth_edge.export.parity import reference_frames
from mirrordepth_edge.export.produce import produce_onnx, untrained_network
from mirrordepth_edge.manifest import Manifest, read_manifest, write_artefact
from mirrordepth_edge.quantise.calibration_set import load_calibration
from mirrordepth_edge.quantise.pipeline import Int8Quantizer, ProgressCallback

OPTIONS = SessionOptions(device="cpu", yields=True)


def fp32_and_fp16(model: str, folder: Path) -> dict[str, Path]:
    """Return the FP32 and FP16 files of a model, exported if necessary."""
    if model == "nano":
        return {"FP32": NANO_ONNX["fp32"], "FP16": NANO_ONNX["fp16"]}
    network, sha256 = untrained_network(model)
    network = with_varied_depth(with_outliers(network)).eval()
    files = {}
    for name, precision in (("FP32", "fp32"), ("FP16", "fp16")):
        files[name] = folder / f"{model}.{precision}.onnx"
        config = ExportConfig(precision=precision)  # type: ignore[arg-type]
        produce_onnx(network, config, files[name], reference_frames(), checkpoint_sha256=sha256, trained=False)
    return files


def labelled_frames(root: Path, kind: DataKind, max_frames: int, manifest: Manifest) -> GateFrames:
    """Select frames with measured depth."""
    config = data_config(root, kind)
    dataset = choose_dataset(config, "test")
    selected = Selected(of=dataset, indices=tuple(range(0, len(dataset), max(1, len(dataset) // max_frames))))
    limits_m = depth_limits_on(kind_of(config), manifest.model.depth_limits_m)
    return GateFrames(
        samples=selected, protocol=Protocol(limits_m=limits_m, crop=CONVENTIONS[kind_of(config)].crop), data=root.name
    )


def quantise_with_model_optimizer(quantizer: Int8Quantizer, frames: int) -> Path:
    """Quantise with Model Optimizer's default placement, on few frames, because it keeps all activations in memory."""
    from modelopt.onnx.quantization import quantize

    path = quantizer.folder / "model_optimizer.onnx"
    images = np.concatenate(quantizer.preprocess(quantizer.held_out[:frames]))
    quantize(
        str(quantizer.fp32.path),
        calibration_data={quantizer.manifest.inputs[0].name: images},
        calibration_method="max",
        high_precision_dtype="fp32",
        output_path=str(path),
        calibration_eps=["cpu"],
        log_level="ERROR",
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["nano", "vitb16"])
    parser.add_argument("--calib", required=True, help="calibration set")
    parser.add_argument("--root", type=Path, help="images with measured depth")
    parser.add_argument("--data", default="auto")
    parser.add_argument("--frames", type=int, default=128, help="frames to evaluate on")
    parser.add_argument("--timed", type=int, default=60, help="timed frames")
    parser.add_argument("--optimizer-frames", type=int, default=4, help="calibration frames of Model Optimizer")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(arguments, Path(scratch))
    print("| precision | size | AbsRel | loss | delta1 | boundary F1 | worst pixel | time / FP32 | TensorRT for RTX |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def measure(arguments: argparse.Namespace, folder: Path) -> list[list[str]]:
    """Create a table row for each precision."""
    files = fp32_and_fp16(arguments.model, folder)
    manifest = read_manifest(files["FP32"])
    frames = arguments.root and labelled_frames(arguments.root, arguments.data, arguments.frames, manifest)
    progress = ProgressCallback(stage=lambda name, steps: print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr))
    quantizers = {}
    for name, scheme in (("INT8 for GPUs", "gpu"), ("INT8 for CPUs", "cpu")):
        (folder / scheme).mkdir()
        quantizers[name] = quantizer = Int8Quantizer(
            fp32=Artefact.open(files["FP32"]),
            calibration=load_calibration(arguments.calib),
            config=QuantiseConfig(scheme=scheme),  # type: ignore[arg-type]
            folder=folder / scheme,
            labelled=frames,
            progress=progress,
        )
        started = time.perf_counter()
        fitted = quantizer.fit()
        files[name] = folder / f"{scheme}.onnx"
        quantizer.write(files[name], fitted, manifest.artefact_sha256)
        print(f"{name}: {len(fitted.nodes)} layers, {time.perf_counter() - started:.0f} s to fit", file=sys.stderr)
    quantizer = quantizers["INT8 for GPUs"]
    default = quantise_with_model_optimizer(quantizer, arguments.optimizer_frames)
    files["Model Optimizer's default"] = folder / "optimizer.onnx"
    manifest_of_default = replace(quantizer.manifest_of([]), artefact_sha256="")
    write_artefact(files["Model Optimizer's default"], default.read_bytes(), manifest_of_default)
    accuracies = {
        name: quantizer.evaluator.evaluate(
            path, manifest_of_default if name.startswith("Model") else read_manifest(path), 1.0
        )
        for name, path in files.items()
    }
    ratios = latency_ratios(files, manifest_of_default, quantizer, arguments.timed)
    rows = []
    for name, path in files.items():
        accuracy = accuracies[name]
        built = "-" if name in ("INT8 for CPUs", "Model Optimizer's default") else build_result(path, folder)
        boundary = accuracy.figures.boundary_f1
        rows.append(
            [
                name,
                f"{path.stat().st_size / 1e6:.1f} MB",
                f"{accuracy.figures.abs_rel:.4f}",
                f"{accuracy.loss:+.2%}",
                f"{accuracy.figures.delta1:.4f}",
                "-" if boundary is None else f"{boundary:.4f}",
                f"{accuracy.max_relative:.1%}",
                f"{ratios[name]:.2f}",
                built,
            ]
        )
    return rows


def latency_ratios(
    files: dict[str, Path], manifest_of_default: Manifest, quantizer: Int8Quantizer, frames: int
) -> dict[str, float]:
    """Measure the median latencies of all files interleaved, relative to FP32."""
    image = quantizer.preprocess(quantizer.held_out[:1])[0]
    feeds = {manifest_of_default.inputs[0].name: image}
    manifests = {
        name: manifest_of_default if name.startswith("Model") else read_manifest(path) for name, path in files.items()
    }
    sessions = [OnnxRuntimeSession(path, manifests[name], OPTIONS) for name, path in files.items()]
    paths = [[lambda _, session=session: session.infer(feeds)] for session in sessions]
    time_interleaved(paths, 3)
    medians = [float(np.median(times)) for times in time_interleaved(paths, frames)]
    return {name: median / medians[0] for name, median in zip(files, medians, strict=True)}


def build_result(path: Path, folder: Path) -> str:
    """Build a file with TensorRT for RTX, which needs no GPU, and state size and time or the reason of failure."""
    try:
        manifest = build_engine(Artefact.open(path), folder / f"{path.stem}.plan", plan_build("rtx-ada"))
    except MdeError as error:
        return f"refused: {error.why}"
    assert manifest.engine is not None
    return f"{(folder / f'{path.stem}.plan').stat().st_size / 1e6:.1f} MB, {manifest.engine.build_seconds:.1f} s"


if __name__ == "__main__":
    main()
