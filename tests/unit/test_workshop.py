"""What failed for want of room on the host says so, and nothing else does; what cannot be known is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from composer.compose.build import warn_of_hidden
from composer.compose.workshop import Workshop, full_disk_told
from composer.errors import ComposerError, NoSpace
from composer.events import Tape
from tests.unit.unprivileged import as_nobody

# A file system on which nothing is ever free.
_FULL = Path("/proc/self")


def _failing(*folders: Path, error: Exception) -> None:
    with full_disk_told(*folders):
        raise error


@pytest.mark.parametrize("error", [ComposerError("no machine", log=Path("a.log")), OSError(5, "odd")])
@pytest.mark.parametrize("more", [["full"], ["roomy", "full"]])
def test_a_failure_beside_a_full_file_system_names_it(
    tmp_path: Path, more: Sequence[str], error: Exception
) -> None:
    folders = [{"full": _FULL, "roomy": tmp_path}[name] for name in more]
    with pytest.raises(NoSpace) as told:
        _failing(*folders, error=error)
    assert told.value.message == "no space left in /proc/self"
    assert (told.value.hint or "").startswith("df -h /proc ")
    assert told.value.detail == str(error), "what was seen is not lost"
    assert told.value.log == getattr(error, "log", None)


def test_a_failure_with_room_is_told_as_it_is(tmp_path: Path) -> None:
    error = ComposerError("no machine")
    with pytest.raises(ComposerError) as told:
        _failing(tmp_path, tmp_path.parent, error=error)
    assert told.value is error


def test_a_full_file_system_is_no_fault_by_itself() -> None:
    with full_disk_told(_FULL):
        pass


def test_files_beside_a_disk_that_cannot_be_read_are_told(
    tmp_path: Path, workshop: Workshop, tape: Tape
) -> None:
    (tmp_path / "secret.qcow2").touch(0o000)
    tmp_path.chmod(0o755)

    def warned() -> None:
        warn_of_hidden(workshop, Path("disk.qcow2"), "update")
        assert "secret.qcow2; a disk that stands on it" in "".join(tape.texts("warning"))

    as_nobody(tmp_path, warned)
