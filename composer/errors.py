"""The errors users see.

Each names what failed and, where there is one, the fix.  The command line turns them into an exit
code and a short text; library code raises them and never prints.

    ComposerError            exit 1: the job failed
    |-- BadInput             exit 2: what the user gave cannot work; no VM was started
    |   `-- RecipeErrors     all faults of a recipe at once
    |-- DeadlineExpired      something did not happen in time
    |-- ToolFailed           a host tool ended with an error
    |-- HelperDied           the helper VM ended or hung
    |-- GuestStepFailed      a step inside the helper failed
    |-- NoSpace              the host has no room for what the job writes
    |-- ShellFailed          the channel into the helper failed
    |-- TemplateUnusable     a helper cannot be cloned; one boots from cold instead
    |-- NotTrusted           a commit is not signed as the recipe demands, or is older than what is there
    |-- RepoDamaged          the repo holds other bytes than its checksums say, or lacks some
    |-- Busy                 another composer, or a VM, holds what this one needs
    `-- VerifyFailed         the product did not do what it must
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = "`composer recipe schema` prints every key that a recipe may have"
FREE_ROOM = "composer gc --older-than 14   frees what lay unused so long; df -h   tells where"


class ComposerError(Exception):
    """A failure with a message for the user.

    ``hint`` is the way out, best a command to type; ``log`` the file that tells more; ``disk`` the
    state of the disk, one sentence; ``detail`` some lines of evidence, such as a console's tail; ``step``
    the step in the helper that was running.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        disk: str | None = None,
        detail: str | None = None,
        log: Path | None = None,
        step: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.disk = disk
        self.detail = detail
        self.log = log
        self.step = step

    def without(self, secret: str) -> None:
        """Take a secret out of all that is told."""
        self.message = self.message.replace(secret, "...")
        self.detail = self.detail and self.detail.replace(secret, "...")
        self.hint = self.hint and self.hint.replace(secret, "...")
        self.args = (self.message,)


class BadInput(ComposerError):
    """What the user gave cannot work; no VM was started and nothing was changed."""

    exit_code = 2


@dataclass(frozen=True)
class Fault:
    """One fault in a recipe: where it stands and why it is one."""

    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}" if self.key else self.reason


class RecipeErrors(BadInput):
    """All faults of one recipe, so that it is mended in one go."""

    def __init__(self, source: str, faults: Sequence[Fault], *, hint: str = _SCHEMA) -> None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = "\n".join(f"{source}: {fault}" for fault in faults)
        super().__init__(f"the recipe has {count}:\n{lines}", hint=hint)
        self.faults = tuple(faults)


class DeadlineExpired(ComposerError):
    """Something did not happen in its time."""


class ToolFailed(ComposerError):
    """A host tool ended with an error; ``stderr`` is what it said."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str) -> None:
        said = stderr.strip().splitlines()
        last = said[-1] if said else "it said nothing"
        super().__init__(
            f"{Path(argv[0]).name} ended with {returncode}: {last}",
            detail="\n".join(said[-10:]) if len(said) > 1 else None,
        )
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr


class HelperDied(ComposerError):
    """The helper VM ended, or stopped answering."""


class GuestStepFailed(ComposerError):
    """A step inside the helper failed; ``step`` is its name; ``killed`` where it did not end by itself."""

    def __init__(self, step: str, reason: str, *, detail: str | None = None, killed: bool = False) -> None:
        super().__init__(f"step {step!r} in the helper failed: {reason}", detail=detail, step=step)
        self.killed = killed


class NoSpace(ComposerError):
    """The host has no room for what the job writes."""

    @classmethod
    def told_by(cls, error: OSError) -> NoSpace | None:
        """Return what the system says, if it is that."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return None
        where = f": {error.filename}" if error.filename else ""
        return cls(f"no space left on the host{where}", hint=FREE_ROOM)


class ShellFailed(ComposerError):
    """The channel into the helper could not be opened or broke."""


class TemplateUnusable(ComposerError):
    """A template is missing, stale or damaged, or QEMU refuses it; a cold boot does without."""


class NotTrusted(ComposerError):
    """A commit lacks a good signature, belongs to another ref, or is older than the one deployed."""


class RepoDamaged(ComposerError):
    """An object of the repo is missing, or is not what its checksum says."""


class Busy(ComposerError):
    """Another composer, or a VM, holds what this one needs."""


class VerifyFailed(ComposerError):
    """The product did not boot, or booted into something else than it claims."""


def told_by_system(error: OSError) -> ComposerError:
    """Return what the system says as an error for users."""
    where = f": {error.filename}" if error.filename else ""
    return NoSpace.told_by(error) or ComposerError(f"{error.strerror or error}{where}")
