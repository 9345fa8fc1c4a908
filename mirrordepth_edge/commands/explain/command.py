"""`mde explain`: what the mirror prompt contributes, and which words it is near."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.artefact import NANO_CHECKPOINT, SHIPPED
from mirrordepth_edge.backends.pytorch import probe
from mirrordepth_edge.commands.parameters import (
    NANO,
    ClipWeights,
    CropOption,
    Data,
    DepthRoot,
    Device,
    KbCrop,
    ListFile,
    UnitsPerMetre,
    data_config,
    torch_device,
)
from mirrordepth_edge.errors import MissingError, OptionError
from mirrordepth_edge.machine.unavailable import Unavailable
from mirrordepth_edge.support.files import ensure_folder, require_suffix


def explain(
    checkpoint: Annotated[str, typer.Argument(help="A .safetensors checkpoint, or nano.")],
    root: Annotated[Path | None, typer.Option(help="RGB-D data, as for mde evaluate.")] = None,
    data: Data = "auto",
    list_file: ListFile = None,
    depth_root: DepthRoot = None,
    kb_crop: KbCrop = None,
    units_per_metre: UnitsPerMetre = None,
    crop: CropOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use N evenly spaced images.  [default: all]")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Human prompt.  [default: How far is this location from ...?]")
    ] = None,
    words: Annotated[
        Path | None, typer.Option(help="File of words to compare with, one per line.  [default: built in]")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of a training run, to plot its epochs.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Chart to write.")] = Path("explain.png"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results.")] = None,
    device: Device = "auto",
    clip_weights: ClipWeights = None,
) -> None:
    """Show what the mirror prompt contributes and encodes.

    With --root: depth errors with the mirror prompt, and with random, human, zero and shuffled prompts in its place.
    If CLIP was trained on text: the similarity of the mirror prompt to words.
    """
    path = NANO_CHECKPOINT if checkpoint == NANO else SHIPPED.get(checkpoint, Path(checkpoint))
    if path.suffix in (".onnx", ".plan", ".engine"):
        why = "Export replaces the text tower by a constant."
        raise OptionError(f"{path} has no mirror prompt.", why, "Give the checkpoint that it was exported from.")
    if root is None and any(option is not None for option in (prompt, crop, limit)):
        raise OptionError("--prompt, --crop and --limit require --root.", "They apply to images.", "--root DATA")
    require_suffix(output, (".png",), "a chart")
    for file in (output, json_file or output):
        ensure_folder(file.parent)
    if isinstance(missing := probe(), Unavailable):
        raise MissingError("mde explain needs PyTorch.", missing.reason, missing.cure)

    # PyTorch is installed: modules that import it follow.
    from mirrordepth_edge.commands.explain.analysis import AblationOptions, analyse

    options = root and AblationOptions(
        data=data_config(root, data, list_file, depth_root, kb_crop, units_per_metre),
        crop=crop,
        limit=limit,
        prompt=prompt,
    )
    analyse(
        path,
        options or None,
        device=torch_device(device),
        clip_weights=clip_weights,
        words_file=words,
        run=run,
        output=output,
        json_file=json_file,
    )
