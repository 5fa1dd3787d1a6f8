"""Variables in recipes: they are names, not a programming language."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composer.errors import RecipeErrors
from composer.recipe.load import LoadedRecipe, load_recipe

BASE = 'name = "demo"\n[ostree]\nrepo = "repo"\nref = "os/good"\n'


def toml(text: str) -> str:
    """Return a text as TOML writes it; JSON's strings are TOML's, but for pairs of surrogates and DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def load(folder: Path, text: str, **defines: str) -> LoadedRecipe:
    path = folder / "demo.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, defines)


def content(folder: Path, text: str, head: str = "", **defines: str) -> str:
    """Return what becomes of a text in a recipe."""
    files = f'[[files]]\npath = "/etc/x"\ncontent = {toml(text)}\n'
    return load(folder, BASE + head + files, **defines).contents["/etc/x"].decode()


def fault_of(folder: Path, text: str) -> str:
    with pytest.raises(RecipeErrors) as caught:
        content(folder, text)
    (fault,) = caught.value.faults
    assert fault.key == "files[0].content"
    return fault.reason


def test_date(tmp_path: Path) -> None:
    before = date.today()
    assert content(tmp_path, "on {{ date }}") in {f"on {d:%Y%m%d}" for d in (before, date.today())}


def test_default_and_override(tmp_path: Path) -> None:
    head = '[variables]\nversion = "12"\n'
    assert content(tmp_path, "v{{ version }}", head) == "v12"
    assert content(tmp_path, "v{{ version }}", head, version="13") == "v13"
    assert content(tmp_path, "{{ date }}", date="never") == "never"


def test_a_value_is_not_read_again(tmp_path: Path) -> None:
    assert content(tmp_path, "{{ x }}", x="{{ date }}") == "{{ date }}"


def test_rendered_values_are_checked(tmp_path: Path) -> None:
    with pytest.raises(RecipeErrors, match=r"ostree\.stateroot"):
        load(tmp_path, BASE + 'stateroot = "{{ x }}"\n', x="a b")


def test_filters(tmp_path: Path) -> None:
    assert content(tmp_path, "{{ x | trim | upper }} {{ y | default('none') }}", x=" a ") == "A none"


def test_undefined_variable_is_a_fault_at_its_key(tmp_path: Path) -> None:
    assert "'nope' is undefined" in fault_of(tmp_path, "{{ nope }}")


def test_all_faults_are_told_with_those_of_the_schema(tmp_path: Path) -> None:
    with pytest.raises(RecipeErrors) as caught:
        load(tmp_path, BASE + 'stateroot = "{{ a }}"\nkargs = ["{{ b }}"]\nkeep = 99\n')
    assert {fault.key for fault in caught.value.faults} == {
        "ostree.stateroot",
        "ostree.kargs[0]",
        "ostree.keep",
    }


@pytest.mark.parametrize(
    "text",
    [
        "{% for x in date %}{{ x }}{% endfor %}",
        "{% set x = date %}{{ x }}",
        "{% if date %}x{% endif %}",
        "{% include '/etc/passwd' %}",
        "{% macro m() %}{% endmacro %}",
        "{{ date() }}",
        "{{ date.__class__ }}",
        "{{ date['x'] }}",
        "{{ date | attr('x') }}",
        "{{ date | format(1) }}",
        "{{ date | center(9999999) }}",
        "{{ date * 99999999 }}",
        "{{ date ~ date }}",
        "{{ 2 ** 99999999 }}",
        "{{ -1 }}",
        "{{ [date] }}",
        "{{ date if date else date }}",
        "{{ date is defined }}",
        "{{ date == date }}",
        "{{ range }}",
        "{{ cycler }}",
        "{{ date",
        "{% raw %}x",
        "{{}}",
    ],
)
def test_refused(tmp_path: Path, text: str) -> None:
    assert "{% raw %}" in fault_of(tmp_path, text)  # the way out is told


def test_braces_as_they_are(tmp_path: Path) -> None:
    text = "{{ a }} ${b} {% c %}"
    assert content(tmp_path, f"{{% raw %}}{text}{{% endraw %}} {{{{ x }}}}", x="1") == f"{text} 1"


PUT = {
    "name": lambda text: f"name = {text}\n[ostree]\nrepo = 'r'\nref = 'a'\n",
    "ref": lambda text: f"name = 'n'\n[ostree]\nrepo = 'r'\nref = {text}\n",
    "karg": lambda text: f"{BASE}kargs = [{text}]\n",
    "remote": lambda text: f"{BASE}[ostree.remote]\nurl = {text}\n",
    "hostname": lambda text: f"{BASE}[system]\nhostname = {text}\n",
    "size": lambda text: f"{BASE}[disk]\nsize = {text}\n",
    "password": lambda text: f"{BASE}[[users]]\nname = 'a'\npassword_hash = {text}\n",
    "path": lambda text: f"{BASE}[[files]]\ncontent = ''\npath = {text}\n",
    "content": lambda text: f"{BASE}[[files]]\npath = '/etc/x'\ncontent = {text}\n",
    "repo": lambda text: f"name = 'n'\n[ostree]\nrepo = {text}\nref = 'a'\n",
}

GET: dict[str, Callable[[LoadedRecipe], str | None]] = {
    "name": lambda loaded: loaded.recipe.name,
    "ref": lambda loaded: loaded.recipe.ostree.ref,
    "karg": lambda loaded: loaded.recipe.ostree.kargs[0],
    "remote": lambda loaded: loaded.recipe.ostree.remote.url if loaded.recipe.ostree.remote else None,
    "hostname": lambda loaded: loaded.recipe.system.hostname,
    "password": lambda loaded: loaded.recipe.users[0].password_hash,
    "path": lambda loaded: loaded.recipe.files[0].path,
    "content": lambda loaded: loaded.contents["/etc/x"].decode(),
    "repo": lambda loaded: loaded.recipe.ostree.repo,
}

MARKS = st.text(alphabet="{}%#a\"\\|.$/- \n'0(~", max_size=24)
PLAIN = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=300)
@given(where=st.sampled_from(sorted(PUT)), text=PLAIN | MARKS)
def test_any_text_arrives_or_is_refused(where: str, text: str) -> None:
    marked = any(mark in text for mark in ("{{", "{%", "{#"))
    crossed = "{" in text and "\r" in text  # test_line_ends
    with tempfile.TemporaryDirectory() as folder:
        try:
            loaded = load(Path(folder), PUT[where](toml(text)))
        except RecipeErrors:
            return
    if where in GET and not marked and not crossed and not text.endswith("\n"):  # test_recipe's newlines
        assert GET[where](loaded) == text


@pytest.mark.parametrize(
    "text", ["a\r\nb\rc", "\ufeffx", "a\u2028b", "\x0b\x0c\x1c", "日本", "x\n\n", " x ", "😀"]
)
def test_odd_text_arrives_byte_by_byte(tmp_path: Path, text: str) -> None:
    assert content(tmp_path, text) == text


def test_line_ends(tmp_path: Path) -> None:
    assert content(tmp_path, "a {\r\nb }\r\n") == "a {\r\nb }\r\n"


def test_no_text_is_dropped_without_a_word(tmp_path: Path) -> None:
    text = 'echo "${#name} and ${#}"'
    try:
        assert content(tmp_path, text) == text
    except RecipeErrors:
        return


def test_jinjas_own_names_are_undefined(tmp_path: Path) -> None:
    fault_of(tmp_path, "{{ self }}")


def test_surrogates(tmp_path: Path) -> None:
    fault_of(tmp_path, r'{{ "\ud800" }}')


BOMBS = {
    "braces": "{" * 100000,
    "brackets": "{{ " + "(" * 50000 + ")" * 50000 + " }}",
    "power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "digits": "{{ " + "9" * 100000 + " }}",
    "many filters": "{{ date" + " | upper" * 100000 + " }}",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_bomb(tmp_path: Path, text: str) -> None:
    began = time.monotonic()
    fault_of(tmp_path, text)
    assert time.monotonic() - began < 5


def test_nested_filters(tmp_path: Path) -> None:
    fault_of(tmp_path, "{{ date" + "|trim" * 205 + " }}")


LOAD_IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from composer.errors import RecipeErrors
from composer.recipe.load import load_recipe
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
try:
    load_recipe(Path(sys.argv[1]), {})
except RecipeErrors:
    sys.exit(2)
"""


def test_a_large_variable_many_times(tmp_path: Path) -> None:
    recipe = tmp_path / "demo.toml"
    files = f'[[files]]\npath = "/etc/x"\ncontent = "{"{{ x }}" * 2000}"\n'
    recipe.write_text(f'{BASE}[variables]\nx = "{"a" * 2**18}"\n{files}')
    done = subprocess.run(
        [sys.executable, "-c", LOAD_IN_LITTLE_MEMORY, recipe], check=False, stderr=subprocess.PIPE
    )
    assert done.returncode == 2, done.stderr
