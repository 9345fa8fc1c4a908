"""What the scripts in this folder share: how they read their options and how they end."""

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
    """One that shows a script's own description."""
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_placing(options: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Let it be said where ONNX files run."""
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of ONNX files (auto)")
    options.add_argument("--threads", type=positive, help="CPU threads")
    return options


def positive(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def open_ours(name: str, options: SessionOptions, stack: ExitStack) -> tuple[Candidate, Path]:
    """One of our models to measure, open until `stack` ends, and its file."""
    candidate = open_candidate(name, options)
    stack.callback(candidate.predictor.close)
    return candidate, model_path(name)


def ends(work: Callable[[Sequence[str] | None, ExitStack], None], words: Sequence[str] | None = None) -> int:
    """Run a script and return its exit code, which is `mde`'s: expected failures go to the error stream."""
    try:
        with ExitStack() as stack:
            work(words, stack)
    except MdeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
