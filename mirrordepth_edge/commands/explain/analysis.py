"""The analysis of `mde explain` and its output; imports PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from rich.table import Table
from rich.text import Text

from mirrordepth_edge.commands.terminal import console, progress_bar, write_result
from mirrordepth_edge.config import Crop, DataConfig
from mirrordepth_edge.data.choose import CONVENTIONS, choose_dataset, depth_limits_on, kind_of
from mirrordepth_edge.data.sample import Selected
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.evaluation.evaluate import Protocol
from mirrordepth_edge.imaging.draw import save_png
from mirrordepth_edge.model.checkpoint import load_checkpoint
from mirrordepth_edge.model.network import DepthNetwork
from mirrordepth_edge.training import explain as core
from mirrordepth_edge.training.explain_picture import draw_reading

MAX_ROWS = 10
"""Words and rows of the mirror prompt that are printed; --json has all of them."""


@dataclass(frozen=True, kw_only=True)
class AblationOptions:
    """The data and the prompt of the ablation."""

    data: DataConfig
    crop: Crop | None
    limit: int | None
    prompt: str | None


def analyse(
    path: Path,
    ablation_options: AblationOptions | None,
    *,
    device: str,
    clip_weights: Path | None,
    words_file: Path | None,
    run: Path | None,
    output: Path,
    json_file: Path | None,
) -> None:
    """Ablate the mirror prompt, compare it with words, and print and write the results.

    Args:
        path: Checkpoint.
        ablation_options: None leaves the ablation out.
        device: PyTorch device.
        words_file: Words to compare with; the built-in list if None.
        run: Folder of the training run, to plot its epochs.
        output: PNG to write.

    Raises:
        OptionError: There is no data, and the prompt cannot be compared with words.
    """
    network, info = load_checkpoint(path, clip_weights=clip_weights)
    network.to(device)
    unread = f"The mirror prompt of {network.config.preset} cannot be compared with words: {core.why_unread(network)}."
    if ablation_options is None and core.why_unread(network):
        raise OptionError("There is nothing to show without images.", unread, "--root DATA")
    epochs = None if run is None else core.read_run(run, path, info)
    words = core.WORDS if words_file is None else core.read_words(words_file)
    reading = core.read_mirror(network, words, epochs)
    ablation = None if ablation_options is None else _ablate(network, ablation_options, path)
    if reading is None:
        console.print(unread)
    else:
        _print_reading(reading)
        save_png(output, draw_reading(reading))
        console.print(f"wrote {output}")
    write_result(json_file, core.to_json(info, ablation, reading))


def _ablate(network: DepthNetwork, options: AblationOptions, path: Path) -> core.Ablation:
    """Run and print the ablation."""
    dataset, kind = choose_dataset(options.data, "test"), kind_of(options.data)
    limit = options.limit
    if limit is not None and limit < len(dataset):
        dataset = Selected(of=dataset, indices=tuple(i * len(dataset) // limit for i in range(limit)))
    limits_m = depth_limits_on(kind, network.config.depth_limits_m)
    protocol = Protocol(limits_m=limits_m, crop=options.crop or CONVENTIONS[kind].crop)
    with progress_bar() as bar:
        samples = bar.track(dataset, total=len(dataset), description=path.name)
        ablation = core.ablate(network, samples, protocol, options.prompt)
    console.print(f"{path} on {options.data.root}: {len(dataset)} images; {protocol}")
    _print_ablation(ablation)
    return ablation


def _print_ablation(ablation: core.Ablation) -> None:
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


def _print_reading(reading: core.Reading) -> None:
    table = Table("nearest words", "cosine", "random prompt", box=None, pad_edge=False)
    for index in reading.order[:MAX_ROWS]:
        table.add_row(Text(reading.words[index]), f"{reading.cosines[index]:.3f}", f"{reading.by_chance[index]:.3f}")
    console.print(table)
    chance = f"{reading.rows_by_chance:.3f}"
    console.print(f"nearest tokens of the rows of the mirror prompt (random rows: {chance} on average)")
    for row in sorted(range(len(reading.rows)), key=lambda row: -reading.rows[row][0][1])[:MAX_ROWS]:
        console.print(f"  row {row}: " + ", ".join(f"{entry} {cosine:.3f}" for entry, cosine in reading.rows[row]))
