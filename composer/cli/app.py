"""The program: its verbs, and what becomes of errors and signals."""

from __future__ import annotations

import signal
import sys
import traceback
from typing import NoReturn

import click

from composer import __version__
from composer.cli import show
from composer.cli.bootstrap import bootstrap
from composer.cli.build import build
from composer.cli.doctor import doctor
from composer.cli.gc import gc
from composer.cli.helper import helper
from composer.cli.inspect import inspect
from composer.cli.recipe import recipe
from composer.cli.repo import repo
from composer.cli.rollback import rollback
from composer.cli.update import update
from composer.cli.verify import verify
from composer.cli.vm import vm
from composer.errors import ComposerError, told_by_system

_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="composer")
def cli() -> None:
    """Make and update bootable OSTree disks inside a helper VM: no root, no loop mounts, incremental."""


for _verb in (build, update, rollback, verify, inspect, recipe, repo, bootstrap, helper, vm, gc, doctor):
    cli.add_command(_verb)


def main() -> NoReturn:
    """Run the program and exit: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    # SIGTERM and SIGHUP take the way of Ctrl-C, so that every block is left in order.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _interrupt)
    sys.exit(_run(debug="--debug" in sys.argv))


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _run(*, debug: bool) -> int:
    try:
        cli.main(standalone_mode=False)
    # click's own name for Ctrl-C is Abort
    except (click.exceptions.Abort, KeyboardInterrupt):
        show.say("composer: interrupted; what was running has ended", err=True)
        return _INTERRUPTED
    except click.ClickException as error:
        error.show()
        return 2
    except BrokenPipeError:
        return 1
    except Exception as error:
        if debug:
            show.say(traceback.format_exc(), err=True)
        known = _as_known(error)
        show.error(known)
        return known.exit_code
    return 0


def _as_known(error: Exception) -> ComposerError:
    if isinstance(error, ComposerError):
        return error
    if isinstance(error, OSError):
        return told_by_system(error)
    return ComposerError(
        f"a fault of the composer itself: {type(error).__name__}: {error}",
        hint="run it again with --debug and report what it prints",
    )
