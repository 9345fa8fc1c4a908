"""The options of `mde build` that its builder is told: what is typed becomes a `BuildConfig`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mirrordepth_edge.config import BuildConfig

Workspace = Annotated[
    float | None, typer.Option(metavar="GIB", help="Most GPU memory for a kernel's intermediates.  [no limit]")
]
OptimisationLevel = Annotated[
    int | None, typer.Option(min=0, max=5, help="TensorRT: how long to search for fast kernels.  [3]")
]
NoTimingCache = Annotated[
    bool, typer.Option("--no-timing-cache", help="TensorRT: time every kernel anew, and keep nothing.")
]
Verbosity = Annotated[str, typer.Option(help="What mde audit can read in it: detailed, layer-names or none.")]
Dynamic = Annotated[
    str | None,
    typer.Option(metavar="MIN,OPT,MAX", help="ONNX whose sizes are open: [Nx]HxW each.  [all that it takes]"),
]
HardwareCompat = Annotated[
    str, typer.Option(help="TensorRT: other GPUs it shall run on, at a cost: none, ampere+ or same-cc.")
]
VersionCompat = Annotated[
    bool, typer.Option("--version-compat", help="TensorRT: run in later versions too; carries their lean runtime.")
]
Weights = Annotated[str, typer.Option(help="TensorRT: full, or stripped: refitted from the ONNX file beside it.")]


def build_config(
    workspace: float | None,
    optimisation_level: int | None,
    no_timing_cache: bool,
    verbosity: str,
    dynamic: str | None,
    hardware_compat: str,
    version_compat: bool,
    weights: str,
) -> BuildConfig:
    """What the builder is told.

    Raises:
        OptionError: a value is none of those known.
    """
    from mirrordepth_edge.commands.sizes import parse_range
    from mirrordepth_edge.config import BuildConfig
    from mirrordepth_edge.errors import OptionError

    _one_of("--verbosity", verbosity, ("detailed", "layer-names", "none"))
    _one_of("--hardware-compat", hardware_compat, ("none", "ampere+", "same-cc"))
    _one_of("--weights", weights, ("full", "stripped"))
    if workspace is not None and not 0 < workspace < float("inf"):
        raise OptionError(f"--workspace {workspace:g} is no amount of memory.", "It is in GiB.", "--workspace 2")
    return BuildConfig(
        workspace_gib=workspace,
        optimisation_level=optimisation_level,
        timing_cache=not no_timing_cache,
        verbosity=verbosity,  # type: ignore[arg-type]
        dynamic=None if dynamic is None else parse_range(dynamic),
        hardware_compat=hardware_compat,  # type: ignore[arg-type]
        version_compat=version_compat,
        weights=weights,  # type: ignore[arg-type]
    )


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    from mirrordepth_edge.errors import OptionError

    if value not in known:
        raise OptionError(
            f"{option} {value} is unknown.", f"It is {', '.join(known[:-1])} or {known[-1]}.", f"{option} {known[0]}"
        )
