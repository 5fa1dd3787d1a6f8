"""What the guest's steps read off a disk's boot entries: deployments, their order, what no disk may say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from composer.resources import bootstrap_file
from tests.unit.test_dispatch import Ran, dispatched, step

A, B, C, D = "a" * 64, "b" * 64, "c" * 64, "d" * 64


class Sysroot:
    """A sysroot as ostree leaves it, as far as its steps look at it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "sysroot"
        self._entries = self.path / "boot/loader.1/entries"
        self._entries.mkdir(parents=True)
        (self.path / "boot/loader").symlink_to("loader.1")
        self._made("ostree/boot.1.0")
        (self.path / "ostree/boot.1").symlink_to("boot.1.0")

    def _made(self, name: str) -> Path:
        made = self.path / name
        made.mkdir(parents=True, exist_ok=True)
        return made

    def deploy(
        self, name: str, version: str, commit: str, *, stateroot: str = "debian", title: str = "Debian"
    ) -> Path:
        """Add a deployment with its boot entry; return its folder."""
        tree = self._made(f"ostree/deploy/{stateroot}/deploy/{commit}.0")
        for folder in ("usr/bin", "usr/etc", "etc"):
            (tree / folder).mkdir(parents=True, exist_ok=True)
        tree.with_name(tree.name + ".origin").write_text(f"[origin]\nrefspec=origin:os/{stateroot}\n")
        link = self._made(f"ostree/boot.1.0/{stateroot}/{name}") / "0"
        link.symlink_to(f"../../../deploy/{stateroot}/deploy/{commit}.0")
        boot = self._made(f"boot/ostree/{stateroot}-{name}")
        (boot / "vmlinuz").write_text("kernel")
        (boot / "initrd").write_text("initramfs")
        self.entry(
            name,
            f"title {title}",
            f"version {version}",
            f"options root=UUID=1 rw ostree=/ostree/boot.1/{stateroot}/{name}/0",
            f"linux /boot/ostree/{stateroot}-{name}/vmlinuz",
            f"initrd /boot/ostree/{stateroot}-{name}/initrd",
        )
        return tree

    def entry(self, name: str, *lines: str, prefix: str = "ostree") -> None:
        """Write a boot entry, in the place of one of that name."""
        (self._entries / f"{prefix}-{name}.conf").write_text("".join(f"{line}\n" for line in lines))

    def run(self, text: str, **data: str) -> Ran:
        """Run a step with this sysroot in place of the helper's."""
        given = {name: f"{value}\n".encode() for name, value in data.items()}
        return dispatched(self.path.parent, {"one": step(f'SYSROOT="{self.path}"\n{text}')}, given)

    def listed(self) -> list[str]:
        """Return the deployments as the steps list them."""
        ran = self.run(
            'deployments >"$JOB/all"; while read -r line; do result deployment "$line"; done <"$JOB/all"'
        )
        assert ran.code == 0, ran.last
        return [value for _, value in ran.values]

    def why(self, text: str, **data: str) -> str:
        """Return why a step failed."""
        ran = self.run(text, **data)
        assert ran.code == 1
        return str(ran.last["why"])


@pytest.fixture
def sysroot(tmp_path: Path) -> Sysroot:
    return Sysroot(tmp_path)


def shipped(name: str) -> str:
    """Return the text of a step that ships, but for its first line, which would set the sysroot anew."""
    text = (bootstrap_file("guest") / "steps" / f"{name}.sh").read_text()
    return text.replace('. "$JOB/lib.sh"\n', "")


def test_a_new_sysroot_has_none(sysroot: Sysroot) -> None:
    assert sysroot.listed() == []


def test_the_highest_version_comes_first_whatever_the_names(sysroot: Sysroot) -> None:
    sysroot.deploy("1-debian", "2", A)
    sysroot.deploy("2-debian", "10", B)
    sysroot.deploy("3-other", "9", C, stateroot="other")
    assert sysroot.listed() == [f"debian {B} 0", f"other {C} 0", f"debian {A} 0"]


def test_the_folder_and_the_entry_of_a_place(sysroot: Sysroot) -> None:
    sysroot.deploy("1", "1", A)
    tree = sysroot.deploy("2", "2", B)
    ran = sysroot.run(
        'result at "$(deployment_folder)"; result one "$(boot_entry 1)"; result two "$(boot_entry 2)"'
    )
    entries = f"{sysroot.path}/boot/loader/entries"
    assert ran.values == [
        ["at", str(tree)],
        ["one", f"{entries}/ostree-2.conf"],
        ["two", f"{entries}/ostree-1.conf"],
    ]


def test_other_systems_entries_are_left_alone(sysroot: Sysroot) -> None:
    sysroot.deploy("1", "1", A)
    sysroot.entry("x", "title another", "options root=/dev/sda1", "linux /vmlinuz")
    sysroot.entry("y", "version 9", "options ostree=/nowhere", prefix="windows")
    assert sysroot.listed() == [f"debian {A} 0"]


def test_a_commits_version_cannot_pass_for_lines_of_ostree(sysroot: Sysroot) -> None:
    sysroot.deploy("1", "2", A)
    told = f"Debian 1\nversion 99\noptions ostree=/ostree/boot.1/debian/1/0\nlinux /none (ostree:1)\n{B}.0"
    sysroot.deploy("2", "1", B, title=told)
    assert sysroot.listed() == [f"debian {A} 0", f"debian {B} 0"]


@pytest.mark.parametrize("version", ["", "1.2", "x", "-1"])
def test_a_version_that_is_no_number_is_refused(sysroot: Sysroot, version: str) -> None:
    sysroot.deploy("1", version, A)
    assert sysroot.why("deployments >/dev/null") == "a boot entry has no number as its version: ostree-1.conf"


@pytest.mark.parametrize("target", ["/ostree/boot.1/debian/none/0", "/ostree/boot.0/debian/1/0"])
def test_an_entry_that_leads_nowhere_is_refused(sysroot: Sysroot, target: str) -> None:
    sysroot.entry("1", "version 1", f"options rw ostree={target} quiet")
    assert sysroot.why("deployments >/dev/null") == f"a boot entry leads nowhere: {target}"


@pytest.mark.parametrize(
    "to",
    [
        "/usr",
        "../../../../boot",
        f"../../../deploy/debian/deploy/{A}.0/etc",
        *(
            f"../../../deploy/debian/deploy/{name}"
            for name in ("--help.0", f"{A[1:]}g.0", f"{A}.x", A[1:] + ".0")
        ),
        f"../../../deploy/a b/deploy/{A}.0",
    ],
)
def test_an_entry_that_leads_to_no_deployment_is_refused(sysroot: Sysroot, to: str) -> None:
    sysroot.deploy("1", "1", A)
    (sysroot.path / "ostree/boot.1.0/debian/1" / to).mkdir(parents=True, exist_ok=True)
    link = sysroot.path / "ostree/boot.1.0/debian/1/0"
    link.unlink()
    link.symlink_to(to)
    assert sysroot.why("deployments >/dev/null").startswith("a boot entry leads elsewhere: ")


def test_a_deployment_is_checked(sysroot: Sysroot) -> None:
    sysroot.deploy("1", "1", A)
    sysroot.deploy("2", "2", B)
    assert sysroot.run(shipped("check")).code == 0


def test_a_disk_without_a_deployment_fails_the_check(sysroot: Sysroot) -> None:
    assert sysroot.why(shipped("check")) == "no boot entry names a deployment"


@pytest.mark.parametrize("file", ["initrd", "vmlinuz"])
@pytest.mark.parametrize("how", ["gone", "empty"])
def test_a_file_that_a_boot_needs_is_missed(sysroot: Sysroot, file: str, how: str) -> None:
    sysroot.deploy("1", "1", A)
    sysroot.deploy("2", "2", B)
    path = sysroot.path / "boot/ostree/debian-2" / file
    path.unlink() if how == "gone" else os.truncate(path, 0)
    assert sysroot.why(shipped("check")) == f"its boot entry lacks a file: /boot/ostree/debian-2/{file}"


@pytest.mark.parametrize("part", ["/etc", "/usr/etc", ".origin"])
def test_a_part_of_the_tree_is_missed(sysroot: Sysroot, part: str) -> None:
    tree = sysroot.deploy("1", "1", A)
    path = Path(f"{tree}{part}")
    path.unlink() if part == ".origin" else path.rmdir()
    assert sysroot.why(shipped("check")) == f"the default deployment is not complete: {part} is missing"


# An ostree whose deploy does what is told in its place.
OSTREE = """
ostree() {
    echo "$*" >>"$JOB/state/asked"
    case "$2" in
        deploy) %s ;;
        undeploy) rm "$(boot_entry $(($3 + 1)))" ;;
    esac
}
"""


def deployed(sysroot: Sysroot, does: str, keep: str) -> tuple[Ran, list[str]]:
    """Run the deploy step with an ostree that does that; return what it was asked for as well."""
    text = OSTREE % does + shipped("deploy")
    ran = sysroot.run(text, stateroot="debian", ref="os", commit=B, keep=keep)
    return ran, (ran.folder / "state/asked").read_text().splitlines()


def test_a_commit_that_is_deployed_already_is_not_deployed_again(sysroot: Sysroot) -> None:
    sysroot.deploy("1", "1", A)
    sysroot.deploy("2", "2", B)
    ran = sysroot.run(OSTREE % "false" + shipped("deploy"), stateroot="debian", ref="os", commit=B, keep="2")
    assert ran.code == 0, ran.last
    assert not (ran.folder / "state/asked").exists()


def test_the_oldest_of_the_stateroot_go(sysroot: Sysroot) -> None:
    sysroot.deploy("1", "1", A)
    sysroot.deploy("2", "2", C)
    sysroot.deploy("3", "3", A, stateroot="other")
    sysroot.deploy("9", "0", B)
    entries = sysroot.path / "boot/loader/entries"
    ran, asked = deployed(sysroot, f"sed -i 's/^version .*/version 4/' {entries}/ostree-9.conf", "1")
    assert ran.code == 0, ran.last
    assert asked == ["admin deploy --os=debian os", "admin undeploy 3", "admin undeploy 2"]


def pin(tree: Path) -> None:
    """Do to a deployment what `ostree admin pin` does."""
    with tree.with_name(tree.name + ".origin").open("a") as origin:
        origin.write("[libostree-transient]\npinned=true\n")


def test_one_that_is_pinned_stays_and_is_not_counted(sysroot: Sysroot) -> None:
    for number, commit in enumerate((A, C, B), start=1):
        tree = sysroot.deploy(str(number), str(number), commit)
        if commit == A:
            pin(tree)
    ran = sysroot.run(OSTREE % "false" + shipped("deploy"), stateroot="debian", ref="os", commit=B, keep="1")
    assert ran.code == 0, ran.last
    assert (ran.folder / "state/asked").read_text() == "admin undeploy 1\n"


@pytest.mark.parametrize(
    ("present", "keep", "options"),
    [
        ("", "2", "--no-prune"),
        ("A", "1", "--no-prune"),  # the undeploy that follows prunes
        ("A", "2", "--no-prune"),
        ("A", "3", "--retain --no-prune"),
        ("AC", "2", ""),
        ("AC", "3", "--retain --no-prune"),
        # With --retain the steps trim, so what is pinned takes no other's place.
        ("P", "2", "--retain --no-prune"),
        ("AP", "2", "--retain --no-prune"),
    ],
)
def test_a_deploy_looks_for_what_to_prune_only_where_a_deployment_goes(
    sysroot: Sysroot, present: str, keep: str, options: str
) -> None:
    for number, name in enumerate(present, start=1):
        tree = sysroot.deploy(str(number), str(number), {"A": A, "C": C, "P": D}[name])
        if name == "P":
            pin(tree)
    _, asked = deployed(sysroot, ":", keep)
    assert asked == [" ".join(["admin deploy --os=debian", *options.split(), "os"])]


def test_another_default_than_the_commit_is_a_failure(sysroot: Sysroot) -> None:
    sysroot.deploy("1", "1", A)
    ran, _ = deployed(sysroot, ":", "2")
    assert ran.code == 1
    assert ran.last["why"] == "after the deploy the default deployment is not the commit asked for"


def test_the_report(sysroot: Sysroot) -> None:
    sysroot.deploy("1", "1", A)
    sysroot.deploy("2", "2", B).with_name(f"{B}.0.origin").unlink()
    fake = """
ostree() {
    case "$2 $3" in
        "show "*) [ "$4" = %s ] && echo "'12.1'" ;;
        "remote list") echo "origin  https://example.org/repo" ;;
    esac
}
"""
    ran = sysroot.run(fake % A + shipped("report"))
    assert ran.code == 0, ran.last
    options = "root=UUID=1 rw ostree=/ostree/boot.1/debian"
    assert ran.values[:-2] == [
        ["deployment", f"{B} 0 debian - -"],
        ["deployment", f"{A} 0 debian origin:os/debian 12.1"],
        ["kargs", f"{options}/1/0"],
        ["kargs", f"{options}/2/0"],
        ["remote", "origin https://example.org/repo"],
    ]
    assert [key for key, _ in ran.values[-2:]] == ["root-used", "root-free"]


FSCK = """
partition() { echo "/dev/the-$1"; }
e2fsck() {
    echo "$*" >>"$JOB/state/asked"
    [ "$1" = -p ] && return %d
    return %d
}
"""


@pytest.mark.parametrize("replayed", [0, 1])
def test_the_check_of_a_file_system(sysroot: Sysroot, replayed: int) -> None:
    ran = sysroot.run(FSCK % (replayed, 0) + shipped("fsck-root"))
    assert ran.code == 0, ran.last
    assert (ran.folder / "state/asked").read_text().splitlines() == [
        "-p -E journal_only /dev/the-root",
        "-f -n /dev/the-root",
    ]


@pytest.mark.parametrize(
    ("replayed", "found", "why"),
    [(8, 0, "the root file system's journal cannot be replayed"), (0, 4, "the root file system has faults")],
)
def test_a_file_system_with_faults(sysroot: Sysroot, replayed: int, found: int, why: str) -> None:
    assert sysroot.why(FSCK % (replayed, found) + shipped("fsck-root")) == why
