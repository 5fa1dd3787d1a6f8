"""Variables in recipes: `{{ date }}` in any text, replaced after the TOML is parsed.

A recipe may come from anywhere, so this is no programming language: names, constants and five filters
that cannot grow a text without bound.  Loops, calls, attributes and arithmetic are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from composer.errors import Fault

_ALLOWED = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Filter)
_FILTERS = frozenset({"lower", "upper", "trim", "default", "truncate"})
_LONGEST = 2**20
# A text of a recipe that needs more filters and names than this is no text of a recipe; Python's own
# compiler gives up at some 200 nested calls.
_MOST_FILTERS = 100
_MOST_NODES = 10_000
# Of a whole recipe: texts with variables in them, each of which is compiled, and characters of all together.
_MOST_TEXTS = 1000
_LONGEST_OF_ALL = 2**23


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    environment.filters = {name: environment.filters[name] for name in _FILTERS}
    environment.globals = {}
    return environment


class Variables:
    """Replaces variables in parsed TOML, gathering every fault instead of stopping at the first.

    ``used`` are the names that stood in texts so far.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)
        self._environment = _environment()
        self.faults: list[Fault] = []
        self.used: set[str] = set()
        self._texts = 0
        self._length = 0

    def apply(self, value: Any, key: str = "") -> Any:
        """Return ``value`` with the variables in all its texts replaced."""
        if isinstance(value, dict):
            return {
                name: self.apply(inner, f"{key}.{name}" if key else name) for name, inner in value.items()
            }
        if isinstance(value, list):
            return [self.apply(inner, f"{key}[{index}]") for index, inner in enumerate(value)]
        if isinstance(value, str):
            return self._render(value, key)
        return value

    def _render(self, text: str, key: str) -> str:
        # Any other brace is the text's own, a comment of jinja's included, which would vanish.
        if "{{" not in text and "{%" not in text:
            return text
        self._texts += 1
        if self._texts > _MOST_TEXTS:
            if self._texts == _MOST_TEXTS + 1:
                self.faults.append(Fault(key, f"more than {_MOST_TEXTS} texts of the recipe have variables"))
            return text
        try:
            # Checked first, on the parsed form: what is refused is never compiled or run.
            self._check(text)
            rendered = self._bounded(text)
            rendered.encode()
        except (TemplateError, ValueError, TypeError, RecursionError, OverflowError, SyntaxError) as error:
            self.faults.append(
                Fault(key, f"{error}; to write braces as they are: {{% raw %}}...{{% endraw %}}")
            )
            return text
        return rendered

    def _check(self, text: str) -> None:
        if "{#" in text:
            raise ValueError("'{#' beside a variable would begin a comment and vanish")
        if "\r" in text:
            raise ValueError("carriage returns beside a variable would be lost")
        filters = 0
        for count, node in enumerate(self._environment.parse(text).find_all(nodes.Node)):
            filters += isinstance(node, nodes.Filter)
            if not isinstance(node, _ALLOWED):
                raise ValueError(f"{type(node).__name__.lower()} is not allowed in a recipe's variables")
            if isinstance(node, nodes.Name):
                if node.name == "self":
                    raise ValueError("'self' is undefined")  # jinja's own word for the template
                self.used.add(node.name)
            if filters > _MOST_FILTERS or count > _MOST_NODES:
                raise ValueError("too many filters and names in one text")

    def _bounded(self, text: str) -> str:
        pieces, length = [], 0
        for piece in self._environment.from_string(text).generate(self._values):
            pieces.append(piece)
            length += len(piece)
            self._length += len(piece)
            if length > _LONGEST:
                raise ValueError("the text is longer than 1 MiB")
            if self._length > _LONGEST_OF_ALL:
                raise ValueError("with this one, the texts with variables are longer than 8 MiB")
        return "".join(pieces)
