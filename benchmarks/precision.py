"""What each precision costs in depth and brings in time, on the same frames in one run.

    python benchmarks/precision.py nano --calib office --root FOLDER
    python benchmarks/precision.py vitb16 --calib office

`nano` is the model that ships. `vitb16` has random weights with CLIP's outlier channels planted (`outliers.py`), so
that what ruins a real ViT ruins it too; its depth means nothing, and is compared with FP32's. Times are ONNX Runtime's
on this CPU, frame by frame in turn. INT8 for GPUs is rounded as it says and multiplied in floating point there, which
is slow and says nothing of a GPU; whether TensorRT for RTX builds it is told instead.
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

from mirrordepth_edge.artefact import NANO_ONNX
from mirrordepth_edge.backends.onnxruntime import OnnxRuntimeSession
from mirrordepth_edge.bench.measure import time_interleaved
from mirrordepth_edge.commands.parameters import data_config
from mirrordepth_edge.config import ExportConfig, QuantiseConfig, SessionOptions
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

YIELDS = SessionOptions(device="cpu", yields=True)


def fp32_and_fp16(model: str, folder: Path) -> dict[str, Path]:
    """The files to begin with."""
    if model == "nano":
        return {"FP32": NANO_ONNX["fp32"], "FP16": NANO_ONNX["fp16"]}
    network, sha256 = untrained_network(model)
    network = with_varied_depth(with_outliers(network)).eval()
    made = {}
    for name, precision in (("FP32", "fp32"), ("FP16", "fp16")):
        made[name] = folder / f"{model}.{precision}.onnx"
        config = ExportConfig(precision=precision)  # type: ignore[arg-type]
        produce_onnx(network, config, made[name], reference_frames(), checkpoint_sha256=sha256, trained=False)
    return made


def labelled(root: Path, kind: str, most: int, manifest: Manifest) -> GateFrames:
    """Frames with measured depth."""
    config = data_config(root, kind)
    dataset = choose_dataset(config, "test")
    chosen = Selected(of=dataset, indices=tuple(range(0, len(dataset), max(1, len(dataset) // most))))
    limits_m = depth_limits_on(kind_of(config), manifest.model.depth_limits_m)
    return GateFrames(
        samples=chosen, protocol=Protocol(limits_m=limits_m, crop=CONVENTIONS[kind_of(config)].crop), data=root.name
    )


def model_optimizer(workshop: Int8Quantizer, frames: int) -> Path:
    """Model Optimizer's default placement, on a few frames: it holds the activations of all of them at once."""
    from modelopt.onnx.quantization import quantize

    path = workshop.folder / "model_optimizer.onnx"
    images = np.concatenate(workshop.prepared(workshop.held_out[:frames]))
    quantize(
        str(workshop.fp32),
        calibration_data={workshop.manifest.inputs[0].name: images},
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
    parser.add_argument("--root", type=Path, help="pictures with measured depth")
    parser.add_argument("--data", default="auto")
    parser.add_argument("--frames", type=int, default=128, help="of these, so many are looked at")
    parser.add_argument("--timed", type=int, default=60, help="frames that are timed")
    parser.add_argument("--optimizer-frames", type=int, default=4, help="frames for Model Optimizer's default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(arguments, Path(scratch))
    print("| precision | size | AbsRel | loss | delta1 | boundary F1 | worst pixel | time / FP32 | TensorRT for RTX |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def measure(arguments: argparse.Namespace, folder: Path) -> list[list[str]]:
    """A row for each precision."""
    files = fp32_and_fp16(arguments.model, folder)
    manifest = read_manifest(files["FP32"])
    frames = arguments.root and labelled(arguments.root, arguments.data, arguments.frames, manifest)
    progress = ProgressCallback(stage=lambda name, steps: print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr))
    shops = {}
    for name, scheme in (("INT8 for GPUs", "gpu"), ("INT8 for CPUs", "cpu")):
        (folder / scheme).mkdir()
        shops[name] = shop = Int8Quantizer(
            fp32=files["FP32"],
            manifest=manifest,
            calibration=load_calibration(arguments.calib),
            config=QuantiseConfig(scheme=scheme),  # type: ignore[arg-type]
            folder=folder / scheme,
            labelled=frames,
            progress=progress,
        )
        began = time.perf_counter()
        fitted = shop.fit()
        files[name] = folder / f"{scheme}.onnx"
        shop.write(files[name], fitted, manifest.artefact_sha256)
        print(f"{name}: {len(fitted.nodes)} layers, {time.perf_counter() - began:.0f} s to fit", file=sys.stderr)
    shop = shops["INT8 for GPUs"]
    default = model_optimizer(shop, arguments.optimizer_frames)
    files["Model Optimizer's default"] = folder / "optimizer.onnx"
    described = replace(shop.described([]), artefact_sha256="")
    write_artefact(files["Model Optimizer's default"], default.read_bytes(), described)
    judged = {
        name: shop.evaluator.evaluate(path, described if name.startswith("Model") else read_manifest(path), 1.0)
        for name, path in files.items()
    }
    ratios = times(files, described, shop, arguments.timed)
    rows = []
    for name, path in files.items():
        found = judged[name]
        built = "-" if name in ("INT8 for CPUs", "Model Optimizer's default") else engine(path, folder)
        boundary = found.figures.boundary_f1
        rows.append(
            [
                name,
                f"{path.stat().st_size / 1e6:.1f} MB",
                f"{found.figures.abs_rel:.4f}",
                f"{found.loss:+.2%}",
                f"{found.figures.delta1:.4f}",
                "-" if boundary is None else f"{boundary:.4f}",
                f"{found.max_relative:.1%}",
                f"{ratios[name]:.2f}",
                built,
            ]
        )
    return rows


def times(files: dict[str, Path], described: Manifest, shop: Int8Quantizer, frames: int) -> dict[str, float]:
    """Medians over FP32's, all files in turn."""
    image = shop.prepared(shop.held_out[:1])[0]
    feeds = {described.inputs[0].name: image}
    manifests = {name: described if name.startswith("Model") else read_manifest(path) for name, path in files.items()}
    sessions = [OnnxRuntimeSession(path, manifests[name], YIELDS) for name, path in files.items()]
    paths = [[lambda _, session=session: session.infer(feeds)] for session in sessions]
    time_interleaved(paths, 3)
    medians = [float(np.median(each)) for each in time_interleaved(paths, frames)]
    return {name: each / medians[0] for name, each in zip(files, medians, strict=True)}


def engine(path: Path, folder: Path) -> str:
    """What TensorRT for RTX makes of a file, with no GPU."""
    try:
        made = build_engine(path, folder / f"{path.stem}.plan", plan_build("rtx-ada"))
    except MdeError as error:
        return f"refused: {error.why}"
    assert made.engine is not None
    return f"{(folder / f'{path.stem}.plan').stat().st_size / 1e6:.1f} MB, {made.engine.build_seconds:.1f} s"


if __name__ == "__main__":
    main()
