"""`--target here`: build the engine of an ONNX file before a verb runs it."""

from __future__ import annotations

from mirrordepth_edge.artefact import Artefact, model_path
from mirrordepth_edge.backends.registry import open_artefact
from mirrordepth_edge.commands.terminal import errors, progress_bar
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.engines.build import HERE, plan_build, problems_of
from mirrordepth_edge.engines.cache import cached_engine
from mirrordepth_edge.errors import OptionError


def resolve(model: str, target: str | None, options: SessionOptions = SessionOptions()) -> Artefact:
    """Open `model`, or with `--target here` its cached engine, built if necessary.

    The file is hashed here and, since it is passed on as an `Artefact`, not again.

    Args:
        options: Options for opening the model; an engine supports only some of them.

    Raises:
        OptionError: The target, the kind of model, or an option does not fit.
        MissingError: No engine can be built on this machine.
        InputError: The model cannot be read.
        InputError, DeviceError, GateError: The build failed.
    """
    if target is None:
        return open_artefact(model, trust=options.trust)
    path = model_path(model)
    if target != HERE:
        raise OptionError(
            f"--target {target} cannot run here.",
            "An engine runs only on the kind of GPU it was built for.",
            f"--target {HERE}, or mde build --target {target}",
        )
    if path.suffix != ".onnx":
        why = "Engines are built from ONNX files."
        raise OptionError(f"--target {HERE} does not fit {path}.", why, "Leave --target out, or give an .onnx file.")
    _refuse_unsupported(options)
    plan, onnx = plan_build(HERE), Artefact.open(path)
    for problem in problems_of(plan, onnx.manifest.precision):
        errors.print(f"known problem ({problem.severity}, {problem.certainty}): {problem.what}", style="yellow")
    with progress_bar() as bar:
        task = bar.add_task("looking for an engine", total=None)
        engine = cached_engine(onnx, plan=plan, on_stage=lambda stage: bar.update(task, description=stage))
    state = "built and cached" if engine.built else "from the cache"
    errors.print(f"{model}: engine {state} ({engine.why}): {engine.path}")
    return engine.artefact


def _refuse_unsupported(options: SessionOptions) -> None:
    """Refuse options that an engine does not support."""
    given = {
        "--device cpu": options.device == "cpu",
        "--backend": options.backend is not None,
        "--bf16": options.bf16,
        "--threads": options.threads is not None,
        "--trust": options.trust,
    }
    for option, is_given in given.items():
        if is_given:
            why = "An engine is machine code for the GPU, in the precision of its ONNX file."
            raise OptionError(f"--target {HERE} and {option} cannot be combined.", why, "Leave one of them out.")
