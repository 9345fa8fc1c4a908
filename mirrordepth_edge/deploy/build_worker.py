"""Builds one engine in a process of its own: `python -m mirrordepth_edge.deploy.build_worker`.

A child process because Polygraphy chooses between TensorRT and TensorRT for RTX once per process,
because a running builder cannot be interrupted by Ctrl-C, and because its memory is given back.

The request is JSON on the standard input, the answer JSON in the file it names: `seconds` and
`version`, or `failed` with what the parser or builder said.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def parser_errors(parser: Any) -> str:
    """Every parser error with its node, one a line."""
    errors = (parser.get_error(index) for index in range(parser.num_errors))
    return "\n".join(f"node {e.node_name() or '?'} ({e.node_operator() or '?'}): {e.desc()}" for e in errors)


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Parse and build as `deploy.build.build_engine` asks."""
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if request["flavour"] == "tensorrt-rtx" else "0"
    from polygraphy.backend.trt import CreateConfig, create_network, engine_bytes_from_network
    from polygraphy.exception import PolygraphyException

    if request["flavour"] == "tensorrt-rtx":
        import tensorrt_rtx as trt
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        capabilities = [tuple(int(part) for part in text.split(".")) for text in request["compute_capabilities"]]
        create_config: Any = CreateConfigRTX(compute_capabilities=capabilities or None)
    else:
        import tensorrt as trt

        create_config = CreateConfig()

    started = time.perf_counter()
    # Precision is a property of the ONNX file: nothing may be lowered or raised by the builder.
    builder, network = create_network(strongly_typed=True)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse_from_file(request["onnx"]):
        return {"failed": parser_errors(parser) or "the parser gave no reason"}
    try:
        engine = engine_bytes_from_network((builder, network, parser), config=create_config)
    except PolygraphyException as error:
        return {"failed": f"the builder failed: {error}"}
    Path(request["plan"]).write_bytes(engine)
    return {"seconds": time.perf_counter() - started, "version": trt.__version__}


if __name__ == "__main__":
    order = json.loads(sys.stdin.read())
    Path(order["answer"]).write_text(json.dumps(build(order)), encoding="utf-8")
