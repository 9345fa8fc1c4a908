"""`mde explain`: what a model's mirror is worth, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirrordepth_edge.commands.parameters import (
    NANO,
    ClipWeights,
    Data,
    DepthRoot,
    Device,
    KbCrop,
    ListFile,
    UnitsPerMetre,
    check_crop,
    data_config,
    torch_device,
)

if TYPE_CHECKING:
    from mirrordepth_edge.training.explain import Ablation, Reading

SHOWN = 10  # words and rows of the mirror that are printed; --json has all of them


def explain(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint (.safetensors), or nano.")],
    root: Annotated[Path | None, typer.Option(help="Pictures with depth, as mde evaluate takes them.")] = None,
    data: Data = "auto",
    list_file: ListFile = None,
    depth_root: DepthRoot = None,
    kb_crop: KbCrop = None,
    units_per_metre: UnitsPerMetre = None,
    crop: Annotated[str | None, typer.Option(help="none, eigen or garg.  [NYU: eigen, KITTI: garg, else none]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use this many pictures, evenly spread.  [all]")] = None,
    prompt: Annotated[str | None, typer.Option(help="The human prompt.  [How far is this location from ...?]")] = None,
    words: Annotated[Path | None, typer.Option(help="Words to hold the mirror against, one a line.  [ours]")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of a training, to follow the mirror through it.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write.")] = Path("explain.png"),
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything that was measured.")] = None,
    clip_weights: ClipWeights = None,
) -> None:
    """Show what a model's mirror is worth and what it says.

    With --root: depth errors with the mirror, and with random ones, a human prompt, zeros and its
    own rows shuffled in its place. Where CLIP was trained on text: how near the mirror is to words.
    """

    from mirrordepth_edge.artefact import NANO_CHECKPOINT, SHIPPED
    from mirrordepth_edge.backends.pytorch import probe
    from mirrordepth_edge.commands.terminal import console, progress_bar
    from mirrordepth_edge.data.choose import CONVENTIONS, choose_dataset, depth_limits_on, kind_of
    from mirrordepth_edge.data.sample import Selected
    from mirrordepth_edge.errors import MissingError, OptionError
    from mirrordepth_edge.evaluation.evaluate import Protocol
    from mirrordepth_edge.imaging.draw import save_png
    from mirrordepth_edge.machine.unavailable import Unavailable
    from mirrordepth_edge.support.files import ensure_folder, require_suffix, write_json

    path = NANO_CHECKPOINT if checkpoint == NANO else SHIPPED.get(checkpoint, Path(checkpoint))
    if path.suffix in (".onnx", ".plan", ".engine"):
        why = "Export worked it out once and for all: no text side is left in the file."
        raise OptionError(f"The mirror is a constant in {path}.", why, "Name the checkpoint that it was made from.")
    check_crop(crop)
    if root is None and any(each is not None for each in (prompt, crop, limit)):
        raise OptionError("--prompt, --crop and --limit go with pictures.", "No --root names any.", "--root DATA")
    require_suffix(output, (".png",), "a picture")
    for file in (output, json_file or output):
        ensure_folder(file.parent)
    if isinstance(missing := probe(), Unavailable):
        raise MissingError("mde explain needs PyTorch.", missing.reason, missing.cure)
    from mirrordepth_edge.model.checkpoint import load_checkpoint
    from mirrordepth_edge.training import explain as core
    from mirrordepth_edge.training.explain_picture import draw_reading

    network, info = load_checkpoint(path, clip_weights=clip_weights)
    network.to(torch_device(device))
    unread = f"No words are read from {network.config.preset}: {core.why_unread(network)}."
    if root is None and core.why_unread(network):
        raise OptionError("Without pictures there is nothing to say.", unread, "--root DATA")
    epochs = None if run is None else core.read_run(run, path, info)
    reading = core.read_mirror(network, core.WORDS if words is None else core.read_words(words), epochs)
    ablation = None
    if root is not None:
        source = data_config(root, data, list_file, depth_root, kb_crop, units_per_metre)
        dataset = choose_dataset(source, "test")
        if limit is not None and limit < len(dataset):
            dataset = Selected(of=dataset, indices=tuple(i * len(dataset) // limit for i in range(limit)))
        kind = kind_of(source)
        limits_m = depth_limits_on(kind, network.config.depth_limits_m)
        protocol = Protocol(limits_m=limits_m, crop=crop or CONVENTIONS[kind].crop)  # type: ignore[arg-type]
        with progress_bar() as bar:
            pictures = bar.track(dataset, total=len(dataset), description=path.name)
            ablation = core.ablate(network, pictures, protocol, prompt)
        console.print(f"{path} on {root}: {len(dataset)} pictures; {protocol}")
        _print_ablation(ablation)
    if reading is None:
        console.print(unread)
    else:
        _print_reading(reading)
        save_png(output, draw_reading(reading))
        console.print(f"wrote {output}")
    if json_file is not None:
        write_json(json_file, core.to_json(info, ablation, reading))
        console.print(f"wrote {json_file}")


def _print_ablation(ablation: Ablation) -> None:
    from itertools import chain

    from rich.table import Table

    from mirrordepth_edge.commands.terminal import console

    table = Table("text feature from", box=None, pad_edge=False)
    metrics = {"abs_rel": "AbsRel", "rmse": "RMSE (m)", "delta1": "delta1"}
    for heading in chain(*((label, "change") for label in metrics.values())):
        table.add_column(heading, justify="right")
    for name, runs in ablation.results.items():
        means = ((f"{ablation.mean(name, m):.4f}", f"{100 * ablation.change(name, m):+.1f} %") for m in metrics)
        table.add_row(name, *chain(*means))
        if len(runs) > 1:
            spreads = ((f"±{ablation.spread(name, m):.4f}", "") for m in metrics)
            table.add_row(f"  spread of {len(runs)} seeds", *chain(*spreads))
    console.print(table)
    console.print("\n".join(ablation.remarks()))


def _print_reading(reading: Reading) -> None:
    from rich.table import Table
    from rich.text import Text

    from mirrordepth_edge.commands.terminal import console

    table = Table("nearest words", "cosine", "random mirror", box=None, pad_edge=False)
    for index in reading.order[:SHOWN]:
        table.add_row(Text(reading.words[index]), f"{reading.cosines[index]:.3f}", f"{reading.by_chance[index]:.3f}")
    console.print(table)
    chance = f"{reading.rows_by_chance:.3f}"
    console.print(f"rows of the mirror nearest to the vocabulary (random ones: {chance} on average)")
    for row in sorted(range(len(reading.rows)), key=lambda row: -reading.rows[row][0][1])[:SHOWN]:
        console.print(f"  row {row}: " + ", ".join(f"{entry} {cosine:.3f}" for entry, cosine in reading.rows[row]))
