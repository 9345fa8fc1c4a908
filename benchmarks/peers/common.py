"""Options and exit codes of the scripts in this folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from mirrordepth_edge.artefact import model_path
from mirrordepth_edge.bench.measure import Candidate, open_candidate
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import MdeError


def parser(about: str | None) -> argparse.ArgumentParser:
    """Create a parser that shows the docstring of a script."""
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_device_options(options: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options for the device of ONNX files."""
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of ONNX files (auto)")
    options.add_argument("--threads", type=positive, help="CPU threads")
    return options


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def open_ours(name: str, options: SessionOptions, stack: ExitStack) -> tuple[Candidate, Path]:
    """Open one of our models until `stack` closes; return it with its file."""
    candidate = open_candidate(name, options)
    stack.callback(candidate.predictor.close)
    return candidate, model_path(name)


def run_script(work: Callable[[Sequence[str] | None, ExitStack], None], words: Sequence[str] | None = None) -> int:
    """Run a script; return the exit code of `mde` and print expected errors to stderr."""
    try:
        with ExitStack() as stack:
            work(words, stack)
    except MdeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
