"""Options that several verbs share, and how their text becomes values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirrordepth_edge.errors import OptionError

if TYPE_CHECKING:
    from mirrordepth_edge.config import SessionOptions

NANO = "nano"

Model = Annotated[str, typer.Option(help="A .plan, .onnx or .safetensors file, or nano.")]
Near = Annotated[float | None, typer.Option(help="Where the colours begin, in metres.  [the model's range]")]
Far = Annotated[float | None, typer.Option(help="Where the colours end, in metres.  [the model's range]")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; one asked for by name is never replaced.")]
ClipWeights = Annotated[Path | None, typer.Option(help="Local CLIP weights instead of a download.")]
Size = Annotated[str | None, typer.Option(metavar="HxW", help="Network input size in pixels, such as 224x288.")]


def parse_size(text: str | None, option: str = "--size") -> tuple[int, int] | None:
    """`224x288` as (height, width); None stays None.

    Raises:
        OptionError: it is no size.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)[xX×](\d+)", text.strip())
    if match is None:
        raise OptionError(f"{option} {text!r} is no size.", "A size is HEIGHTxWIDTH in pixels.", f"{option} 224x288")
    return int(match[1]), int(match[2])


def session_options(device: str, clip_weights: Path | None = None, threads: int | None = None) -> SessionOptions:
    """Options for opening a model.

    Raises:
        OptionError: the device is none of those known.
    """
    from mirrordepth_edge.config import SessionOptions

    if device not in ("auto", "cpu", "cuda"):
        raise OptionError(f"--device {device!r} is no device.", "It is auto, cpu or cuda.", "--device auto")
    return SessionOptions(device=device, clip_weights=clip_weights, threads=threads)  # type: ignore[arg-type]
