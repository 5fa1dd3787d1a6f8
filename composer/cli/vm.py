"""`composer vm list|ssh|console|rm`."""

from __future__ import annotations

import os
import sys
import time

import click

from composer.cli import show
from composer.deadline import Deadline
from composer.errors import BadInput, ComposerError
from composer.helper.debug import debug_shell
from composer.store.folders import Folders
from composer.store.runs import Run, Runs

_POLL_SECONDS = 0.2
_RAW = click.option(
    "--raw", is_flag=True, help="Give a terminal all that the guest writes, also what may command it."
)


def _runs() -> Runs:
    return Runs.of(Folders.of(os.environ))


@click.group()
def vm() -> None:
    """Look at helper VMs: those of running jobs and those that were kept."""


@vm.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_vms(as_json: bool) -> None:
    """List the helper VMs.

    Example:  composer vm list
    """
    found = [
        {"name": run.name, "state": _state(run), "pids": run.qemu_pids(), **run.description()}
        for run in _runs().all()
    ]
    if as_json:
        show.as_json(found)
        return
    show.table(
        "",
        ("name", "state", "purpose", "since", "QEMU"),
        [
            (
                str(item["name"]),
                str(item["state"]),
                str(item.get("purpose", "-")),
                time.strftime("%H:%M:%S", time.localtime(float(str(item.get("since", 0))))),
                " ".join(str(pid) for pid in item["pids"]) or "-",  # type: ignore[union-attr]
            )
            for item in found
        ],
    )


def _state(run: Run) -> str:
    if run.alive:
        return "working"
    return "kept" if run.kept and run.qemu_pids() else "leftover"


@vm.command()
@click.argument("name")
@click.argument("command", nargs=-1)
@_RAW
def ssh(name: str, command: tuple[str, ...], raw: bool) -> None:
    """Open a shell in the helper VM NAME, or run COMMAND there.

    Example:  composer vm ssh c1a2 -- ostree admin status --sysroot /run/composer/sysroot
    """
    with debug_shell(_runs().find(name), Deadline.after(60)) as opened:
        if not command:
            if not sys.stdin.isatty():
                raise BadInput("a shell wants a terminal; give a command to run instead")
            sys.exit(opened.interact())
        answer = opened.run(command, deadline=Deadline.after(3600))
    show.output(answer.stdout, raw=raw)
    show.output(answer.stderr, err=True, raw=raw)
    sys.exit(answer.code)


@vm.command()
@click.argument("name")
@click.option("--follow/--no-follow", default=True, help="Go on until the VM ends.")
@_RAW
def console(name: str, follow: bool, raw: bool) -> None:
    """Show the serial console of the helper VM NAME.

    Example:  composer vm console c1a2
    """
    run = _runs().find(name)
    if not run.console.exists():
        raise BadInput(f"the VM {run.name} has no console yet")
    with run.console.open("rb") as log:
        while True:
            text = log.read()
            show.output(text, raw=raw)
            if not text and (not follow or not run.qemu_pids()):
                return
            time.sleep(_POLL_SECONDS)


@vm.command("rm")
@click.argument("name", required=False)
@click.option("--force", is_flag=True, help="Also a VM whose composer is at work.")
def remove(name: str | None, force: bool) -> None:
    """End the helper VM NAME, kept or left over; without a NAME, all that are left over.

    Example:  composer vm rm c1a2
    """
    runs = _runs()
    if name is None:
        cleared = runs.clear_leftovers()
        show.say(f"cleared {len(cleared)} leftovers" if cleared else "no leftovers")
        return
    run = runs.find(name)
    if run.alive and not force:
        raise BadInput(
            f"the VM {run.name} belongs to a composer at work", hint="end that one, or add --force"
        )
    if not run.clear():
        uri = run.description().get("connect", "qemu:///system")
        raise ComposerError(
            f"the VM {run.name} belongs to another user and could not be ended",
            hint=f"virsh -c {uri} list   shows its name, which begins with {run.name};   "
            f"virsh -c {uri} destroy NAME   ends it",
        )
    show.say(f"{run.name}: ended and removed")
