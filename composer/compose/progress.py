"""Progress of a pull, told from the host's side: what the export has served."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from composer.events import Reporter
from composer.export.http import HttpExport
from composer.recipe.values import show_size

_EVERY_SECONDS = 0.5


@contextmanager
def pull_watched(export: HttpExport, reporter: Reporter) -> Iterator[None]:
    """Report what the export serves for as long as the block runs."""
    done = threading.Event()

    def watch() -> None:
        told = 0
        while not done.wait(_EVERY_SECONDS):
            files, size = export.served.files, export.served.bytes
            if files != told:
                told = files
                reporter.progress("pull", f"{files} objects, {show_size(size)}", done=files, bytes=size)

    thread = threading.Thread(target=watch, name="pull-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
