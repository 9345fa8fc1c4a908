"""The errors users see: what happened, why, and what to type next.

Each kind owns its exit code; `cli.main` is the one place that turns an error into a process exit.
"""

from __future__ import annotations

from typing import ClassVar


class MdeError(Exception):
    """An expected failure, told in three parts.

    Args:
        what: what failed, in one sentence, with the name of the file or option.
        why: the reason as far as it is known.
        cure: what to type or change next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, why: str, cure: str) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.what}\n  why:  {self.why}\n  next: {self.cure}"


class InputError(MdeError):
    """A file or a device that the user named cannot be used."""


class DeviceError(MdeError):
    """A GPU that is there failed at what was asked of it, such as for want of memory."""


class OptionError(MdeError):
    """An option, or a combination of options, that makes no sense."""

    exit_code = 2


class GateError(MdeError):
    """A check that guards quality did not hold; nothing was written."""

    exit_code = 3


class MissingError(MdeError):
    """Hardware or a package that this machine does not have."""

    exit_code = 4


def missing_package(package: str, needed_for: str, extra: str) -> MissingError:
    """The one wording for an optional dependency that is not installed."""
    return MissingError(
        f"{needed_for} needs {package}, which is not installed.",
        f"{package} comes with the optional extra '{extra}', so that a Jetson need not install it.",
        f"pip install 'mirrordepth-edge[{extra}]'",
    )
