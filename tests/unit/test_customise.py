"""Accounts in the product: those that are made, and those that its tree has already."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_deployments import A, Sysroot, shipped
from tests.unit.test_dispatch import Ran

# A product whose tree has the accounts root and daemon.
PRODUCT = """
mount() { :; }
umount() { :; }
chroot() {
    shift
    case "$1 $2 ${3-}" in
        "id -u root" | "id -u daemon") return 0 ;;
        "id -u "*) return 1 ;;
    esac
    echo "$*" >>"$JOB/state/asked"
}
"""


@pytest.fixture
def sysroot(tmp_path: Path) -> Sysroot:
    made = Sysroot(tmp_path)
    made.deploy("1", "1", A)
    return made


def account(sysroot: Sysroot, name: str, **given: str) -> Ran:
    """Run the step for one account."""
    user = {"name": name, "shell": "/bin/bash", **given}
    data = {f"users/0000/{key}": value for key, value in user.items()}
    return sysroot.run(PRODUCT + shipped("customise"), stateroot="debian", **data)


def test_a_new_account_is_made(sysroot: Sysroot) -> None:
    ran = account(sysroot, "eve", uid="4711", groups="sudo,adm", shell="/bin/zsh")
    assert ran.code == 0, ran.last
    made = "useradd --create-home --user-group --shell /bin/zsh --uid 4711 --groups sudo,adm eve\n"
    assert (ran.folder / "state/asked").read_text() == made


@pytest.mark.parametrize("name", ["root", "daemon"])
def test_an_account_of_the_tree_gets_a_password(sysroot: Sysroot, name: str) -> None:
    ran = account(sysroot, name, **{"password-hash": "$6$x"})
    assert ran.code == 0, ran.last
    assert (ran.folder / "state/asked").read_text() == "chpasswd -e\n"


@pytest.mark.parametrize("given", [{"uid": "4711"}, {"groups": "sudo"}, {"shell": "/bin/zsh"}])
def test_what_an_account_of_the_tree_is_not_given_is_refused(sysroot: Sysroot, given: dict[str, str]) -> None:
    ran = account(sysroot, "daemon", **given)
    assert ran.code == 1
    assert "the tree has an account daemon already" in ran.last["why"]
