"""The verbs of `mde`: where each is defined, its line in `mde --help`, and how it is imported on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


@dataclass(frozen=True)
class Verb:
    """A verb that is imported when it runs.

    Args:
        target: `module:attribute` below `mirrordepth_edge.commands`; a function or a `typer.Typer`.
        summary: First line of the verb's own help.
    """

    target: str
    summary: str


# Sections of `mde --help`, in the order in which a user needs them.
SECTIONS: dict[str, dict[str, Verb]] = {
    "Estimate depth": {
        "demo": Verb("demo:demo", "Run the full pipeline on one photo."),
        "run": Verb("run.command:run", "Write the metric depth of images and videos to files."),
        "live": Verb("live.command:live", "Show live metric depth of a camera, a stream or a video."),
        "calibrate-camera": Verb("calibrate_camera:calibrate_camera", "Calibrate a camera with a chessboard."),
    },
    "Train and evaluate": {
        "data": Verb("data.command:data_app", "Check RGB-D data, or render synthetic rooms."),
        "train": Verb("train.command:train", "Train the mirror prompt and the decoder on RGB-D data."),
        "evaluate": Verb("evaluate:evaluate", "Measure depth errors on RGB-D data."),
        "explain": Verb("explain.command:explain", "Show what the mirror prompt contributes and encodes."),
    },
    "Deploy": {
        "calibrate": Verb("calibrate:calibrate", "Select calibration images for INT8."),
        "export": Verb("export.command:export", "Export a checkpoint to ONNX, and build an engine."),
        "build": Verb("build:build", "Build a TensorRT engine from an ONNX file."),
        "inspect": Verb("inspect:inspect", "Show what a model file contains."),
        "audit": Verb("audit:audit", "Check which precision each layer of a model uses."),
        "verify": Verb("verify:verify", "Check that a model computes correct depth on this device."),
    },
    "Measure and diagnose": {
        "bench": Verb("bench.command:bench_app", "Measure latency, throughput or a simulated camera stream."),
        "import-trtexec": Verb("import_trtexec:import_trtexec", "Read the timings in the log of trtexec."),
        "selftest": Verb("selftest:selftest", "Test and benchmark this machine, and write a report."),
        "doctor": Verb("doctor.command:doctor", "Show what works on this machine, what does not, and how to fix it."),
    },
}
VERBS = {name: verb for section in SECTIONS.values() for name, verb in section.items()}


def load_verb(name: str) -> Any:
    """Import a verb and make its click command.

    Raises:
        KeyError: There is no such verb.
    """
    module, attribute = VERBS[name].target.split(":")
    verb = getattr(import_module(f"mirrordepth_edge.commands.{module}"), attribute)
    if isinstance(verb, typer.Typer):
        command = typer.main.get_command(verb)
    else:
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name, cls=SectionedCommand)(verb)
        command = typer.main.get_command(single)
    command.name = name
    return command


class _LazyCommands(Mapping[str, Any]):
    """click's table of commands; an entry is imported when it is looked up."""

    def __getitem__(self, name: str) -> Any:
        return load_verb(name)

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


class LazyGroup(TyperGroup):
    """A group that imports only the verb that runs; its help comes from `SECTIONS`."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = _LazyCommands()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, VERBS))
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), verb.summary) for name, verb in verbs.items()])


class SectionedCommand(TyperCommand):
    """A command whose help lists its options under their `rich_help_panel`, without importing Rich."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        format_sections(self, ctx, formatter)


class SectionedGroup(TyperGroup):
    """A group with options in sections, too."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        format_sections(self, ctx, formatter)
        self.format_commands(ctx, formatter)


def format_sections(command: Any, ctx: Any, formatter: Any) -> None:
    """Write arguments, then options without a section, then each section of options."""
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
        sections.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
    # One column width for all sections, so that the texts line up.
    column = min(max(len(left) for rows in sections.values() for left, _ in rows), 30)
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl([(left.ljust(column), text) for left, text in rows])
