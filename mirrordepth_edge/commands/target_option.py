"""`--target here`: verbs that run a model build its engine first, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mirrordepth_edge.config import SessionOptions
    from mirrordepth_edge.engines.cache import Cached

Target = Annotated[str | None, typer.Option(help="here: build an engine of an ONNX file once, and run that.")]


def resolve(model: str, target: str | None, options: SessionOptions | None = None) -> str:
    """What to open for a model: the file itself, or with `--target here` its engine for this machine, built if need be.

    Args:
        options: what the model will be opened with; an engine has no use for some.

    Raises:
        OptionError: another target, a model that no engine is built of, or options that an engine refuses.
        MissingError: no engine can be built on this machine.
        InputError, DeviceError, GateError: building it failed.
    """
    if target is None:
        return model
    from mirrordepth_edge.artefact import Artefact, model_path
    from mirrordepth_edge.commands.terminal import errors, progress_bar
    from mirrordepth_edge.engines.build import HERE, plan_build, problems_of
    from mirrordepth_edge.engines.cache import cached_engine
    from mirrordepth_edge.errors import OptionError

    path = model_path(model)
    if target != HERE:
        why = "An engine is built for the machine that runs it."
        raise OptionError(
            f"--target {target} cannot be run here.", why, f"--target {HERE}, or mde build --target {target}"
        )
    if path.suffix != ".onnx":
        why = "An engine is built of an ONNX file, and run as it is."
        raise OptionError(f"--target {HERE} does not fit {path}.", why, "Leave --target out, or name an .onnx file.")
    if options is not None:
        _refuse(options)
    plan, onnx = plan_build(HERE), Artefact.open(path)
    for problem in problems_of(plan, onnx.manifest.precision):
        errors.print(f"known problem ({problem.severity}, {problem.certainty}): {problem.what}", style="yellow")
    with progress_bar() as bar:
        task = bar.add_task("looking for an engine", total=None)
        found = cached_engine(onnx, plan=plan, on_stage=lambda stage: bar.update(task, description=stage))
    errors.print(_told(model, found))
    return str(found.path)


def _told(model: str, found: Cached) -> str:
    """Which engine is run, and why it was or was not built."""
    if found.built:
        return f"{model}: engine built and kept ({found.why}): {found.path}"
    return f"{model}: engine kept from before ({found.why}): {found.path}"


def _refuse(options: SessionOptions) -> None:
    from mirrordepth_edge.errors import OptionError

    asked = {
        "--device cpu": options.device == "cpu",
        "--backend": options.backend is not None,
        "--bf16": options.bf16,
        "--threads": options.threads is not None,
        "--trust": options.trust,
    }
    if name := next((name for name, given in asked.items() if given), None):
        why = "An engine is machine code for the GPU, and multiplies as its ONNX file says."
        raise OptionError(f"--target here and {name} exclude each other.", why, "Leave one of them out.")
