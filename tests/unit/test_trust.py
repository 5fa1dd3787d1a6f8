"""What a commit must prove before anything is made of it: signatures, its ref, sound objects."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from composer.compose.source import opened_source
from composer.compose.workshop import Workshop
from composer.deadline import Deadline
from composer.errors import BadInput, NoSpace, NotTrusted, RepoDamaged
from composer.export.http import http_export
from composer.repo.checked import CheckedRepo
from composer.repo.local import Repo, open_repo
from composer.repo.signatures import Trust
from composer.repo.upstream import Tls
from tests.signing import Gpg, sign_ed25519

REF = "os/good"


@pytest.fixture(scope="module")
def gpg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpg]:
    made = Gpg(tmp_path_factory.mktemp("keys") / "gpg").make()
    yield made
    made.end()


@dataclass(frozen=True)
class Scene:
    """A repo that may be anything, and the composer's own."""

    repo: Repo
    checked: CheckedRepo
    commit: str
    deadline: Deadline

    def fetch(self, trust: Trust, ref: str = REF) -> Repo:
        url = f"file://{self.repo.path}"
        return self.checked.fetch(self.repo.source, url, ref, self.commit, trust, self.deadline)

    def file(self, suffix: str) -> Path:
        """Some object of the commit, always the same."""
        if suffix == "commit":
            return self.repo.object_path(f"{self.commit}.commit")
        kind = "file" if suffix == "filez" else suffix
        names = self.repo.objects(self.commit, self.deadline)
        name = min(name for name in names if name.endswith(f".{kind}"))
        return self.repo.object_path(name).with_suffix(f".{suffix}")


@pytest.fixture
def scene(tiny_repo: Path, tmp_path: Path, deadline: Deadline) -> Scene:
    shutil.copytree(tiny_repo, tmp_path / "a repo", symlinks=True)
    repo = open_repo("a repo", tmp_path)
    return Scene(repo, CheckedRepo(tmp_path / "repo"), repo.resolve(REF, deadline), deadline)


def public(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def test_without_keys_checksums_are_enough(scene: Scene) -> None:
    own = scene.fetch(Trust())
    assert own.tree(scene.commit, scene.deadline) == scene.repo.tree(scene.commit, scene.deadline)
    assert own.mode == "bare-user"


def test_gpg(scene: Scene, gpg: Gpg, tmp_path: Path) -> None:
    trust = Trust(gpg=(gpg.public(),))
    with pytest.raises(NotTrusted, match=r"is not trusted: .*no signatures found"):
        scene.fetch(trust)
    other = Gpg(tmp_path / "other").make()
    other.sign(scene.repo.path, scene.commit)
    other.end()
    with pytest.raises(NotTrusted, match="is not trusted"):
        scene.fetch(trust)
    gpg.sign(scene.repo.path, scene.commit)
    assert scene.fetch(trust).has_commit(scene.commit, scene.deadline)


def test_any_of_several_keyrings_will_do(scene: Scene, gpg: Gpg, tmp_path: Path) -> None:
    other = Gpg(tmp_path / "other").make()
    other.end()
    gpg.sign(scene.repo.path, scene.commit)
    scene.fetch(Trust(gpg=(gpg.public(), other.public())))
    scene.fetch(Trust(gpg=(other.public(), gpg.public())))


def test_what_was_cut_off_before_the_keys_were_there_is_made_anew(
    scene: Scene, gpg: Gpg, fake_tool: Callable[[str, str], Path]
) -> None:
    trust = Trust(gpg=(gpg.public(),))
    gpg.sign(scene.repo.path, scene.commit)
    real = shutil.which("ostree")
    fake = fake_tool("ostree", f'case "$*" in *gpg-import*) exit 9 ;; esac\nexec {real} "$@"')
    with pytest.raises(BadInput, match="keys cannot be used"):
        scene.fetch(trust)
    fake.unlink()
    scene.fetch(trust)


def test_a_repo_whose_making_was_cut_off_is_gone_on_with(scene: Scene) -> None:
    scene.checked.path.mkdir(parents=True)
    (scene.checked.path / "config").write_text("[core]\nrepo_version=1\nmode=bare-user\n")
    scene.fetch(Trust())


def test_a_full_cache_is_told_as_such(scene: Scene, fake_tool: Callable[[str, str], Path]) -> None:
    fake_tool("ostree", "echo 'error: mkdirat: No space left on device' >&2; exit 1")
    with pytest.raises(NoSpace, match="no room for a repo"):
        scene.fetch(Trust())


def test_the_age_of_a_signed_commit_is_known_too(scene: Scene, gpg: Gpg) -> None:
    before = scene.repo.timestamp(scene.commit, scene.deadline)
    assert before is not None
    gpg.sign(scene.repo.path, scene.commit)
    assert scene.repo.timestamp(scene.commit, scene.deadline) == before
    assert scene.repo.timestamp("0" * 64, scene.deadline) is None


def test_an_expired_key_signs_nothing(scene: Scene, tmp_path: Path) -> None:
    expired = Gpg(tmp_path / "expired", expired=True).make()
    expired.sign(scene.repo.path, scene.commit)
    expired.end()
    with pytest.raises(NotTrusted, match="expired"):
        scene.fetch(Trust(gpg=(expired.public(),)))


def test_ed25519(scene: Scene) -> None:
    key, another = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    trust = Trust(ed25519=(public(another), public(key)))
    with pytest.raises(NotTrusted, match="has no ed25519 signature"):
        scene.fetch(trust)
    sign_ed25519(scene.repo.path, scene.commit, Ed25519PrivateKey.generate())
    with pytest.raises(NotTrusted, match="is by a key that the recipe names"):
        scene.fetch(trust)
    sign_ed25519(scene.repo.path, scene.commit, key)
    scene.fetch(trust)


def written(scene: Scene, key: Ed25519PrivateKey) -> str:
    """Sign the commit; return how ostree writes the signature, after one that is of no use."""
    sign_ed25519(scene.repo.path, scene.commit, Ed25519PrivateKey.generate(), key)
    argv = ["show", "--print-detached-metadata-key=ostree.sign.ed25519", scene.commit]
    return scene.repo.ostree(*argv, deadline=scene.deadline)


@pytest.mark.parametrize("ending", [b"\0", b"\0'", b'\0"', b"\0\\", b"\0\"'"])
def test_a_signature_that_ostree_writes_as_a_string(scene: Scene, ending: bytes) -> None:
    """Every sixteenth one ends with a zero; quotes and backslashes in it are to be told from escapes."""
    signed = scene.repo.object_path(f"{scene.commit}.commit").read_bytes()
    while True:
        key = Ed25519PrivateKey.generate()
        signature = key.sign(signed)
        if signature.find(b"\0") == 63 and set(ending) <= set(signature):
            break
    quote = '"' if b"'" in signature else "'"
    assert f"b{quote}" in written(scene, key)
    scene.fetch(Trust(ed25519=(public(key),)))


def test_a_signature_with_zeros_elsewhere(scene: Scene) -> None:
    signed = scene.repo.object_path(f"{scene.commit}.commit").read_bytes()
    while True:
        key = Ed25519PrivateKey.generate()
        if b"\0" in (signature := key.sign(signed))[:63] and signature[63] == 0:
            break
    assert "0x" in written(scene, key)
    scene.fetch(Trust(ed25519=(public(key),)))


def test_what_one_recipe_trusts_another_need_not(scene: Scene, gpg: Gpg) -> None:
    """The commit is there already, fetched without keys."""
    scene.fetch(Trust())
    with pytest.raises(NotTrusted):
        scene.fetch(Trust(gpg=(gpg.public(),)))


def test_a_commit_of_another_ref(scene: Scene) -> None:
    refs = scene.repo.path / "refs/heads/os"
    (refs / "other").write_text(f"{scene.commit}\n")
    with pytest.raises(NotTrusted, match="ref binding"):
        scene.fetch(Trust(), "os/other")


def fetch(scene: Scene, way: str) -> None:
    with ExitStack() as stack:
        named = str(scene.repo.path)
        if way == "url":
            named = stack.enter_context(http_export(scene.repo.path)).url
        cache = scene.checked.folder.parent
        source = stack.enter_context(opened_source(named, cache, cache, Trust(), Tls(), scene.deadline))
        source.fetch(REF, scene.commit)


def assert_named(scene: Scene, way: str, file: Path) -> None:
    """Assert that a fetch fails and says which object is to blame."""
    with pytest.raises(RepoDamaged) as caught:
        fetch(scene, way)
    told = f"{caught.value.message} {caught.value.detail}".replace("/", "")
    assert file.parent.name + file.stem in told


# In an archive repo's file: the length of the header, the size, uid, gid, mode, rdev.
@pytest.mark.parametrize("place", [1, 3, 8, 11, 14, 18, 22, 26, 29])
def test_a_damaged_header_is_refused_naming_the_object(scene: Scene, place: int) -> None:
    file = scene.file("filez")
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    file.unlink()
    file.write_bytes(content)
    assert_named(scene, "folder", file)


@pytest.mark.parametrize("suffix", ["filez", "dirtree", "dirmeta", "commit"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
@pytest.mark.parametrize("way", ["folder", "url"])
def test_a_damaged_repo_is_refused_naming_the_object(
    scene: Scene, suffix: str, damage: str, way: str
) -> None:
    file = scene.file(suffix)
    before = file.read_bytes()
    flipped = before[:-3] + bytes([before[-3] ^ 1]) + before[-2:]
    after = {"flip": flipped, "cut": before[:-5], "gone": None, "empty": b""}[damage]
    file.unlink()
    if after is not None:
        file.write_bytes(after)
    assert_named(scene, way, file)
    file.unlink(missing_ok=True)
    file.write_bytes(before)
    own = scene.fetch(Trust())
    argv = ["ostree", f"--repo={own.path}", "fsck", "--quiet"]
    subprocess.run(argv, check=True)


@pytest.mark.parametrize("bound", [True, False])
def test_a_commit_without_a_binding_is_taken_for_any_ref_unless_one_is_required(
    scene: Scene, bound: bool
) -> None:
    option = [] if bound else ["--no-bindings"]
    argv = ["commit", "-b", "os/new", *option, f"--tree=ref={scene.commit}"]
    commit = scene.repo.ostree(*argv, deadline=scene.deadline).strip()
    new = replace(scene, commit=commit)
    new.fetch(Trust(), "os/new")
    if bound:
        new.fetch(Trust(require_binding=True), "os/new")
    else:
        with pytest.raises(NotTrusted, match="bound to no ref"):
            new.fetch(Trust(require_binding=True), "os/new")
    # A checksum names the very commit.
    new.fetch(Trust(require_binding=True), commit)


def test_a_ref_that_goes_back_is_noticed_by_a_first_build(
    scene: Scene, workshop: Workshop, tmp_path: Path
) -> None:
    with workshop.source(str(scene.repo.path), tmp_path, Trust(), Tls()) as source:

        def seen(commit: str, ref: str = REF, *, allow: bool = False) -> None:
            source.fetch(commit, commit)
            workshop.remember(source, ref, commit, allow_downgrade=allow)

        def made(year: int) -> str:
            argv = [
                "commit",
                "-b",
                "os/new",
                f"--tree=ref={scene.commit}",
                f"--timestamp={year}-01-01 00:00:00",
            ]
            return scene.repo.ostree(*argv, deadline=scene.deadline).strip()

        old, new = made(2020), made(2021)
        seen(old)
        seen(new)
        seen(new)
        with pytest.raises(
            NotTrusted, match=rf"{old[:12]}, which is older than {new[:12]}.* 366.0 days"
        ) as caught:
            seen(old)
        assert "--allow-downgrade" in (caught.value.hint or "")
        seen(old, "os/other-ref")
        seen(old, old)
        # A downgrade that was allowed is what counts from then on.
        seen(old, allow=True)
        seen(old)
        seen(new)
        with pytest.raises(NotTrusted):
            seen(old)
        # It does not lie in the cache, and what is damaged is as none.
        shutil.rmtree(workshop.folders.cache)
        for note in (workshop.folders.state / "seen").iterdir():
            note.write_text("{")
    with workshop.source(str(scene.repo.path), tmp_path, Trust(), Tls()) as source:
        source.fetch(old, old)
        workshop.remember(source, REF, old, allow_downgrade=False)
