"""`mde verify`: check that a model computes correct depth on this device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.commands.parameters import Backend, Device, NetworkSize, Trust, parse_size
from mirrordepth_edge.config import SessionOptions


def verify(
    model: Annotated[str, typer.Argument(help="A .plan or .onnx file, nano or nano.fp16.")],
    soak: Annotated[float, typer.Option(min=0, metavar="MINUTES", help="Then run it repeatedly for this long.")] = 0.0,
    device: Device = "auto",
    backend: Backend = None,
    network_size: NetworkSize = None,
    trust: Trust = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results.")] = None,
) -> None:
    """Check that a model computes correct depth on this device.

    Compares with the PyTorch depth stored at export and with the ONNX file on the CPU, looks for NaN, and checks that
    ten runs, and --soak minutes of runs, give the same bits. Exits with 3 if a check fails.
    """
    from mirrordepth_edge.commands.verify.main import verify_model

    network_hw = parse_size(network_size, "--network-size")
    options = SessionOptions(device=device, backend=backend, network_hw=network_hw, trust=trust)
    verify_model(model, options, soak * 60, json_file)
