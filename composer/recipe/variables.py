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


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    environment.filters = {name: environment.filters[name] for name in _FILTERS}
    environment.globals = {}
    return environment


class Variables:
    """Replaces variables in parsed TOML, gathering every fault instead of stopping at the first."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)
        self._environment = _environment()
        self.faults: list[Fault] = []

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
        if "{" not in text:
            return text
        try:
            # Checked first, on the parsed form: what is refused is never compiled or run.
            for node in self._environment.parse(text).find_all(nodes.Node):
                if not isinstance(node, _ALLOWED):
                    raise ValueError(f"{type(node).__name__.lower()} is not allowed in a recipe's variables")
            rendered = self._environment.from_string(text).render(self._values)
            if len(rendered) > _LONGEST:
                raise ValueError("the text is longer than 1 MiB")
        except (TemplateError, ValueError, TypeError, RecursionError, OverflowError) as error:
            self.faults.append(
                Fault(key, f"{error}; to write braces as they are: {{% raw %}}...{{% endraw %}}")
            )
            return text
        return rendered
