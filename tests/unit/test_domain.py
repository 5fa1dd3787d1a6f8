"""The XML of domains and disks, held against golden files; `--renew-golden` writes them anew."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from composer.helper.bootstrap import BootstrapImage
from composer.helper.domain import (
    Backing,
    Channel,
    DirectKernel,
    Disk,
    Domain,
    Ram,
    Uefi,
    disk_xml,
    domain_xml,
)
from composer.helper.lease import HelperShape, helper_domain
from composer.helper.machine import Abilities
from composer.store.cache import Entry
from composer.store.runs import Run

Golden = Callable[[str, str], None]
TCG = Abilities("qemu", "/usr/bin/qemu-system-x86_64", "pc-q35-7.2", "maximum")
KVM = Abilities("kvm", "/usr/bin/qemu-system-x86_64", "pc-q35-7.2", "host-passthrough")
CHAIN = Backing(Path("/disks/.work/armed.qcow2"), "qcow2", Backing(Path("/disks/demo.qcow2"), "qcow2"))
GENERATION = "c6d65a44-0000-4000-8000-000000000001"
HOSTILE = "/tmp/a'b\"c&d<e>]]><!--%20{{ x }}é"


def helper(abilities: Abilities, ram: Ram | None = None, account: str | None = None) -> str:
    image = BootstrapImage(Entry(Path("/cache/bootstrap/42"), "42", {}), fresh=False)
    shape = HelperShape(2**30, 2)
    domain = helper_domain(image, abilities, shape, Run(Path("/run/c1234")))
    assert uuid.UUID(domain.generation), "each VM has one of its own"
    text = domain_xml(replace(domain, generation=GENERATION, ram=ram, account=account))
    return text.replace(domain.name.removeprefix("c1234-"), "TAG")


def product(firmware: str) -> str:
    variables = Uefi(Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/run/c1234/uefi.vars"))
    return domain_xml(
        Domain(
            name=f"c1234-{firmware}",
            kind="qemu",
            emulator="/usr/bin/qemu-system-x86_64",
            machine="pc-q35-7.2",
            cpu_mode="maximum",
            memory=2**30,
            cpus=2,
            console=Path(f"/run/c1234/{firmware}.console.log"),
            report=Path(f"/run/c1234/{firmware}.report"),
            screen=True,
            uefi=variables if firmware == "uefi" else None,
            disks=(
                Disk(
                    Path("/disks/.work/boot.qcow2"),
                    "qcow2",
                    "composer-target",
                    "sda",
                    boot=True,
                    backing=CHAIN,
                ),
            ),
        )
    )


def hostile() -> str:
    path = Path(HOSTILE)
    return domain_xml(
        Domain(
            name=HOSTILE,
            kind="qemu",
            emulator=HOSTILE,
            machine="q35",
            cpu_mode="maximum",
            memory=2**28,
            cpus=1,
            console=path,
            kernel=DirectKernel(path, path, HOSTILE),
            disks=(Disk(path, "raw", "serial", "sda", readonly=True, backing=Backing(path, "qcow2")),),
            channels=(Channel("composer.ssh", path),),
        )
    )


def test_helper_under_tcg(golden: Golden) -> None:
    golden("helper-tcg.xml", helper(TCG))


def test_template_and_clone(golden: Golden) -> None:
    ram = Path("/cache/template/a,b'/ram")
    golden("template.xml", helper(TCG, Ram(ram, clone=False)))
    golden("clone.xml", helper(TCG, Ram(ram, clone=True)))


def test_root_gives_its_qemu_an_account(golden: Golden) -> None:
    golden("clone-as-account.xml", helper(TCG, Ram(Path("/cache/ram"), clone=True), "composer-helper"))


def test_helper_under_kvm(golden: Golden) -> None:
    golden("helper-kvm.xml", helper(KVM))


def test_product_under_bios(golden: Golden) -> None:
    golden("verify-bios.xml", product("bios"))


def test_product_under_uefi(golden: Golden) -> None:
    golden("verify-uefi.xml", product("uefi"))


def test_disk_for_a_running_machine(golden: Golden) -> None:
    disk = Disk(Path("/disks/.work/overlay.qcow2"), "qcow2", "composer-target", "sdb", backing=CHAIN)
    golden("hot-plug-disk.xml", str(disk_xml(disk)))


def test_hostile_names(golden: Golden) -> None:
    golden("hostile-names.xml", hostile())


def test_hostile_names_arrive_as_data() -> None:
    tree = ElementTree.fromstring(hostile())
    texts = ("name", "os/kernel", "os/initrd", "os/cmdline", "devices/emulator")
    assert {tree.findtext(path) for path in texts} == {HOSTILE}
    sources = [element.get("file") for element in tree.iter("source") if element.get("file")]
    assert sources == [HOSTILE, HOSTILE]
    assert [element.get("path") for element in tree.iter("source") if element.get("path")] == [HOSTILE] * 2
    assert [element.tag for element in tree.iter() if not isinstance(element.tag, str)] == []


def backing_files(disk: ElementTree.Element) -> list[str | None]:
    """Return the files below a disk, and None for the end that libvirt is told of."""
    store, found = disk.find("backingStore"), []
    while store is not None:
        source = store.find("source")
        found.append(source.get("file") if source is not None else None)
        store = store.find("backingStore")
    return found


def test_every_chain_is_told_to_its_end() -> None:
    for xml in (helper(TCG), helper(KVM), product("bios"), product("uefi"), hostile()):
        for disk in ElementTree.fromstring(xml).iter("disk"):
            assert backing_files(disk)[-1] is None
    (disk,) = ElementTree.fromstring(product("bios")).iter("disk")
    assert backing_files(disk) == ["/disks/.work/armed.qcow2", "/disks/demo.qcow2", None]


def test_the_product_has_no_network_and_the_helpers_root_is_not_written_to() -> None:
    assert ElementTree.fromstring(product("uefi")).find("devices/interface") is None
    (root,) = ElementTree.fromstring(helper(TCG)).iter("disk")
    assert root.find("readonly") is not None


def test_newline_in_a_path() -> None:
    disk = Disk(Path("/tmp/a\nb"), "raw", "serial", "sda")
    source = ElementTree.fromstring(disk_xml(disk)).find("source")
    assert source is not None
    assert source.get("file") == "/tmp/a\nb"
