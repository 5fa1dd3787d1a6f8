"""Virtual machines through libvirt; the only module that imports it.

By default the QEMU driver runs inside this process (`qemu:///embed`): no daemon, no root, nothing
shared with other composers.  Any other connection URI works as well.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

from composer.deadline import Deadline
from composer.errors import BadInput, ComposerError, DeadlineExpired, HelperDied, NoSpace
from composer.helper import handed
from composer.helper.domain import Disk, Domain, disk_xml, domain_xml
from composer.helper.machine import Abilities, console_tail
from composer.process import has_ended
from composer.store.runs import opened_driver

# libvirt reads this once, while it is imported.  Its warnings would mix with our output, and what it
# reports as an error reaches us as an exception anyway.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")
import libvirt
import libvirt_qemu

EMBEDDED = "embed"
# With it, libvirt asks QEMU for each of 800 properties of its CPU at each start, 0.26 s in all
# (qemuProcessUpdateAndVerifyCPU); without it, for one list of those that matter.
_SLOW_CAPABILITY = "cpu-unavailable-features"
_POLL_SECONDS = 0.05
_END_SECONDS = 15.0
_SETTLE_SECONDS = 5.0
_CALL_SECONDS = 40.0
_FIRST_LOOK_SECONDS = 180.0
_LARGEST_LOG = 2**26
_MIGRATION_POLL_SECONDS = 0.005
_STATE_NAME = "composer-state"
# libvirt's name for the character device of the first serial port.
_CONSOLE = "charserial0"


@functools.cache
def _start_event_loop() -> None:
    """Run libvirt's event loop for the rest of the process: it takes one, before the first connection."""
    libvirt.virEventRegisterDefaultImpl()
    libvirt.registerErrorHandler(lambda _context, _error: None, None)

    def loop() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=loop, name="libvirt-events", daemon=True).start()


@functools.cache
def _embedded_root(runs: Path, remembered: Path, account: str | None) -> Path:
    """Return the root of this process's embedded driver: libvirt lets a process have one, for good."""
    root = opened_driver(runs)
    settings = ['stdio_handler = "file"', f'capability_filters = ["{_SLOW_CAPABILITY}"]']
    # QEMU without its sandbox would not be started (qemu(1), -sandbox): no exec, no new privileges.  One that
    # becomes another account has a sandbox of its own (domain.xml.j2).
    settings.append(f"seccomp_sandbox = {0 if account else 1}")
    if os.getuid() == 0:
        # QEMU has root's rights to the files that it opens at its start, and nothing of them is changed.
        settings += ['user = "root"', 'group = "root"', "remember_owner = 0", "cgroup_controllers = []"]
        settings += ["dynamic_ownership = 0", 'security_driver = "none"', "namespaces = []"]
    # What QEMU can do takes libvirt seconds to ask; it keeps the answers here, by QEMU's build.
    remembered.mkdir(mode=0o700, parents=True, exist_ok=True)
    (root / "cache").symlink_to(remembered)
    (root / "etc").mkdir()
    (root / "etc" / "qemu.conf").write_text("\n".join(settings) + "\n")
    return root


_T = TypeVar("_T")


def _bounded(call: Callable[[], _T], doing: str, seconds: float = _CALL_SECONDS) -> _T:
    """Return what a call into libvirt returns; DeadlineExpired where it does not return.

    libvirt itself waits for a QEMU, or a daemon, that does not answer, without end and deaf to signals.
    """
    returned: list[_T] = []
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            returned.append(call())
        except Exception as error:
            raised.append(error)

    asking = threading.Thread(target=ask, name="libvirt-call", daemon=True)
    asking.start()
    asking.join(seconds)
    if asking.is_alive():
        raise DeadlineExpired(f"libvirt, or QEMU, did not answer in {seconds:.0f} s while {doing}")
    if raised:
        raise raised[0]
    return returned[0]


class Host:
    """A connection to libvirt; ``pids`` is where an embedded driver writes QEMU's pid files.

    ``account`` is whom QEMU becomes before a guest runs, if it is started as root.
    """

    def __init__(self, connection: Any, uri: str, pids: Path | None, account: str | None = None) -> None:
        self._connection = connection
        self.uri = uri
        self._pids = pids
        self._account = account

    def version(self) -> str:
        """Return the version of QEMU, such as '7.2.22'."""
        number = _bounded(self._connection.getVersion, "asking for QEMU's version")
        return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"

    def libvirt_version(self) -> int:
        """Return libvirt's version as it counts it, such as 9000000."""
        return int(self._connection.getLibVersion())

    def abilities(self, kind: str) -> Abilities | None:
        """Return what the host offers for domains of ``kind``; None where it offers none."""
        try:
            # It runs QEMU to find out, the first time: 4 s on two cores without KVM that do nothing else.
            answer = _bounded(
                lambda: self._connection.getDomainCapabilities(None, "x86_64", "q35", kind),
                "asking what QEMU can do",
                _FIRST_LOOK_SECONDS,
            )
        except libvirt.libvirtError:
            return None
        tree = ElementTree.fromstring(answer)  # noqa: S314 - from libvirt, which is trusted
        usable = {mode.get("name") for mode in tree.iterfind("./cpu/mode") if mode.get("supported") == "yes"}
        wanted = ("host-passthrough", "maximum") if kind == "kvm" else ("maximum",)
        modes = [mode for mode in wanted if mode in usable]
        emulator, machine = tree.findtext("./path"), tree.findtext("./machine")
        if not (emulator and machine and modes):
            return None
        return Abilities(kind, emulator, machine, modes[0])

    @contextmanager
    def start(self, domain: Domain) -> Iterator[LibvirtMachine]:
        """Run a VM for the block; it has ended on return, unless `LibvirtMachine.keep` was called."""
        domain = replace(domain, account=self._account)
        domain.console.touch(mode=0o600)
        # A clone has nothing to run before its state is loaded.
        waits = domain.ram is not None and domain.ram.clone
        flags = libvirt.VIR_DOMAIN_START_PAUSED if waits else libvirt.VIR_DOMAIN_NONE
        try:
            xml = domain_xml(domain)
            running = _bounded(lambda: self._connection.createXML(xml, flags), f"starting {domain.name}")
        except libvirt.libvirtError as error:
            raise ComposerError(
                f"the VM {domain.name} cannot start: {error.get_error_message()}",
                hint="composer doctor",
                detail=console_tail(domain.console, 5),
            ) from error
        machine = LibvirtMachine(running, domain, self._pid_of(domain.name))
        try:
            yield machine
        finally:
            if machine.kept:
                machine.settle(Deadline.after(_SETTLE_SECONDS))
            else:
                machine.destroy()

    def _pid_of(self, name: str) -> int | None:
        with suppress(OSError, ValueError, TypeError):
            return int((self._pids / f"{name}.pid").read_text()) if self._pids else None
        return None


class LibvirtMachine:
    """A VM that libvirt runs; ``pid`` is QEMU's, where it is known."""

    def __init__(self, domain: Any, described: Domain, pid: int | None) -> None:
        self._domain = domain
        self._described = described
        self._pid = pid
        self.kept = False

    @property
    def console(self) -> Path:
        """The log of its serial console."""
        return self._described.console

    def keep(self) -> None:
        """Leave it running when its block ends; from now on its console is not logged.

        While a composer has it, the size of the log is watched; afterwards nobody would.
        """
        self._monitor("chardev-change", {"id": _CONSOLE, "backend": {"type": "null", "data": {}}})
        self.kept = True

    def running(self) -> bool:
        """Whether it still runs."""
        if self._pid is not None:
            return not has_ended(self._pid)
        try:
            return bool(self._domain.isActive())
        except libvirt.libvirtError:
            return False

    def check(self, doing: str) -> None:
        """Raise HelperDied where it has ended, and what `check_files` raises."""
        if not self.running():
            raise self.death(doing)
        self.check_files(doing)

    def check_files(self, doing: str) -> None:
        """Raise NoSpace where a full host disk stopped it, ComposerError where another fault of it did.

        HelperDied where it fills the host's disk with what it says, which nobody bounds but we.
        """
        for log in (self._described.console, self._described.report):
            if log is not None and log.exists() and log.stat().st_size > _LARGEST_LOG:
                raise HelperDied(
                    f"the VM said more than {_LARGEST_LOG // 2**20} MiB while {doing}",
                    detail=console_tail(self.console),
                )
        try:
            stopped = self._domain.state()
        except libvirt.libvirtError:
            return
        # error_policy in disk.xml.j2.
        if tuple(stopped) != (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR):
            return
        if libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE in self._disk_errors().values():
            raise NoSpace(f"no space left on the host for the disk while {doing}")
        raise ComposerError(
            f"QEMU could not write or read a disk of the VM while {doing}",
            hint="qemu-img check DISK   tells whether its image is damaged, quota -s   whether your quota is "
            "used up, dmesg   what the host's own disk says",
        )

    def _disk_errors(self) -> dict[str, int]:
        """Return the faults of its disks by their names, none where QEMU does not answer."""
        try:
            return dict(_bounded(self._domain.diskErrors, "asking for the faults of its disks"))
        except (libvirt.libvirtError, DeadlineExpired):
            return {}

    def attach(self, disk: Disk) -> None:
        """Give it a disk while it runs."""
        if self._described.account is not None:
            handed.attach(self._monitor, disk)
            return
        xml = str(disk_xml(disk))
        self._do(
            lambda: self._domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE),
            f"attaching {disk.path.name}",
        )

    def detach(self, disk: Disk, deadline: Deadline) -> None:
        """Take a disk away; on return no process has its file open."""
        if self._described.account is not None:
            handed.detach(self._monitor, disk, deadline)
            return
        xml = str(disk_xml(disk))
        self._do(
            lambda: self._domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE),
            f"detaching {disk.path.name}",
        )
        wanted = f"<serial>{disk.serial}</serial>"
        self._wait(
            lambda: wanted not in self._domain.XMLDesc(0), deadline, f"{disk.path.name} to be released"
        )

    def _wait(self, done: Callable[[], bool], deadline: Deadline, waiting_for: str) -> None:
        while True:
            try:
                if done():
                    return
            except libvirt.libvirtError as error:
                raise self.death(f"waiting for {waiting_for}") from error
            self.check(f"waiting for {waiting_for}")
            deadline.check(waiting_for)
            time.sleep(_POLL_SECONDS)

    def death(self, doing: str) -> HelperDied:
        """Return the error that tells of this machine's end, with its console's last lines."""
        return HelperDied(f"the VM ended while {doing}", detail=console_tail(self.console))

    def pause(self) -> None:
        """Stop its clock and its CPUs."""
        self._do(self._domain.suspend, "pausing it")

    def resume(self) -> None:
        """Let it run on."""
        self._do(self._domain.resume, "resuming it")

    def save(self, state: Path, deadline: Deadline) -> None:
        """Write the state of a paused machine, its RAM aside, to ``state``; it is of no more use then.

        Its memory file is complete on return.  Raises ComposerError where QEMU cannot save it.
        """
        with state.open("wb") as file:
            self._migrate("migrate", file.fileno(), deadline)

    def load(self, state: Path, deadline: Deadline) -> None:
        """Load what `save` wrote, into a machine that maps the same memory file as a clone.

        Raises ComposerError where QEMU refuses it, HelperDied where it ends over it.
        """
        with state.open("rb") as file:
            self._migrate("migrate-incoming", file.fileno(), deadline)

    def _migrate(self, command: str, descriptor: int, deadline: Deadline) -> None:
        """Move the state through a file; libvirt's own save knows no state without the RAM in it."""
        capability = {"capability": "x-ignore-shared", "state": True}
        self._monitor("migrate-set-capabilities", {"capabilities": [capability]})
        self._monitor("getfd", {"fdname": _STATE_NAME}, [descriptor])
        self._monitor(command, {"uri": f"fd:{_STATE_NAME}"})
        while (status := (said := self._monitor("query-migrate", {})).get("status")) != "completed":
            if status in ("failed", "cancelled"):
                reason = said.get("error-desc", "it gives no reason")
                raise ComposerError(f"QEMU could not {command} the state: {reason}")
            deadline.check(f"QEMU to {command} a state")
            time.sleep(_MIGRATION_POLL_SECONDS)

    def _monitor(self, command: str, arguments: dict[str, Any], descriptors: Sequence[int] = ()) -> Any:
        """Give QEMU's monitor a command that libvirt has no call for; return what it returns."""
        text = json.dumps({"execute": command, "arguments": arguments})
        answer = self._do(
            lambda: (
                libvirt_qemu.qemuMonitorCommandWithFiles(self._domain, text, list(descriptors), 0)
                if descriptors
                else libvirt_qemu.qemuMonitorCommand(self._domain, text, 0)
            ),
            f"asking QEMU to {command}",
        )
        said = json.loads(answer[0] if isinstance(answer, tuple) else answer)
        if "error" in said:
            raise ComposerError(f"QEMU refuses to {command}: {said['error'].get('desc')}")
        return said.get("return")

    def _do(self, call: Callable[[], _T], doing: str) -> _T:
        try:
            return _bounded(call, doing)
        except DeadlineExpired as error:
            raise HelperDied(error.message, detail=console_tail(self.console)) from error
        except libvirt.libvirtError as error:
            if not self.running():
                raise self.death(doing) from error
            raise ComposerError(
                f"{doing} failed for the VM {self._described.name}: {error.get_error_message()}"
            ) from error

    def screenshot(self, path: Path) -> Path | None:
        """Save what its screen shows near ``path``; None where it has no screen."""
        chunks: list[bytes] = []

        def shoot() -> Any:
            stream = self._domain.connect().newStream()
            kind = self._domain.screenshot(stream, 0)
            stream.recvAll(lambda _stream, data, _opaque: chunks.append(data), None)
            stream.finish()
            return kind

        try:
            kind = _bounded(shoot, "taking a screenshot")
        except (libvirt.libvirtError, DeadlineExpired):
            return None
        target = path.with_suffix(".png" if kind == "image/png" else ".ppm")
        target.write_bytes(b"".join(chunks))
        return target

    def settle(self, deadline: Deadline) -> None:
        """Wait until libvirt has noticed that nobody talks to its ports any more.

        It writes down what it notices, below a root that is about to be removed with this process.
        """
        while not deadline.expired:
            try:
                if "state='connected'" not in self._domain.XMLDesc(0):
                    return
            except libvirt.libvirtError:
                return
            time.sleep(_POLL_SECONDS)

    def destroy(self) -> None:
        """End it at once."""

        def end() -> None:
            with suppress(libvirt.libvirtError):
                self._domain.destroy()

        # libvirt waits until QEMU has been reaped by its parent, which is PID 1.  In a container that can
        # take seconds or forever, and nobody needs to wait for it.
        ending = threading.Thread(target=end, name="domain-destroy", daemon=True)
        ending.start()
        if self._pid is None:
            ending.join(_END_SECONDS)
            return
        deadline = Deadline.after(_END_SECONDS)
        while not has_ended(self._pid) and not deadline.expired:
            ending.join(0.01)


@contextmanager
def connected(uri: str, runs: Path, remembered: Path, account: str | None = None) -> Iterator[Host]:
    """Connect to libvirt for the block; ``uri`` EMBEDDED runs the driver in this process.

    As root, its QEMU becomes ``account`` before a guest runs, if one is given.  Its state goes into a folder
    below ``runs``, which goes with the process; what it finds out about QEMU is kept in ``remembered`` for
    the next time.  Raises BadInput where libvirt does not answer.
    """
    if uri == EMBEDDED:
        root = _embedded_root(runs, remembered, account)
        yield Host(_embedded(root), f"qemu:///embed?root={root}", root / "run" / "qemu", account)
        return
    connection = _opened(uri, f"virsh -c {uri} version   tells whether it answers")
    try:
        yield Host(connection, uri, None)
    finally:
        with suppress(libvirt.libvirtError):
            connection.close()


@functools.cache
def _embedded(root: Path) -> Any:
    """Return the connection to this process's driver, which stays open as long as the process runs.

    Each opening registers the driver anew, and libvirt has room for some twenty ("Too many drivers").
    """
    return _opened(f"qemu:///embed?root={root}", "apt install libvirt-daemon")


def _opened(uri: str, hint: str) -> Any:
    _start_event_loop()
    try:
        return _bounded(lambda: libvirt.open(uri), f"opening {uri}")
    except libvirt.libvirtError as error:
        raise BadInput(
            f"libvirt does not answer at {uri}: {error.get_error_message()}",
            hint=f"{hint};   composer doctor   checks all needs",
        ) from error
