"""Build engines with TensorRT for RTX, which needs no GPU, and print a table of build times, memory and sizes.

    python benchmarks/engines.py nano nano.fp16 vitb16.onnx vitb16.int8.onnx --target rtx-ada

Each model is a file of `mde export` or a shipped model. The engines are not run; that needs a GPU (`mde selftest`).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from mirrordepth_edge.artefact import Artefact
from mirrordepth_edge.config import BuildConfig
from mirrordepth_edge.engines.build import build_engine, plan_build
from mirrordepth_edge.errors import MdeError
from mirrordepth_edge.manifest import EngineInfo, Manifest

HEAD = "| model | precision | input, pixels | target | build time | peak memory | ONNX | engine |"


def row(onnx: Path, plan: Path, manifest: Manifest, engine: EngineInfo) -> str:
    """Format a line of the table."""
    height, width = manifest.model.size_hw
    sizes = f"{height}x{width}" if manifest.sizes is None else str(manifest.sizes).replace(",", ", ")
    memory = "unknown" if engine.peak_memory_mb is None else f"{engine.peak_memory_mb:.0f} MB"
    name = manifest.model.preset + ("" if manifest.trained else ", random weights")
    return (
        f"| {name} | {manifest.precision.upper()} | {sizes} | {', '.join(engine.compute_capabilities)} "
        f"| {engine.build_seconds:.1f} s | {memory} | {megabytes(onnx)} | {megabytes(plan)} |"
    )


def megabytes(path: Path) -> str:
    """Format the size of a file in 1e6 bytes."""
    return f"{path.stat().st_size / 1e6:.1f} MB"


def main() -> None:
    """Build each model and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--target", default="rtx-ampere,rtx-ada,rtx-blackwell")
    options = parser.parse_args()
    try:
        build_plan = plan_build(options.target)
        print(f"{build_plan.flavour} {build_plan.version}\n\n{HEAD}\n{'|---' * HEAD.count(' |')}|", flush=True)
        for model in options.models:
            onnx = Artefact.open(model)
            with tempfile.TemporaryDirectory() as folder:
                plan = Path(folder) / "engine.plan"
                manifest = build_engine(onnx, plan, build_plan, BuildConfig(timing_cache=False))
                assert manifest.engine is not None, "a plan has an engine"
                print(row(onnx.path, plan, manifest, manifest.engine), flush=True)
    except MdeError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
