"""The doors for extensions: a name, and where the thing of that name is imported from.

Built-in methods, protocols, families and readers are one line each, a dotted path that is imported
when the name is first used, so that listing names imports nothing. Other packages add theirs
through entry points of the same group (`pyproject.toml` of such a package):

    [project.entry-points."maskclip_bench.protocols"]
    my_protocol = "my_package.my_module:MyProtocol"
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar, cast

from maskclip_bench.errors import ConfigError, unknown_name

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Things of one kind by name; each is imported when it is first asked for.

    Args:
        kind: What it holds, in the singular and for messages ("protocol").
        group: Entry-point group of other packages ("maskclip_bench.protocols").
        builtin: Name -> "module:attribute".
        remedy: The command or file that lists what there is.
        make: What is imported -> what is held, e.g. a class -> its one instance.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        builtin: Mapping[str, str],
        *,
        remedy: str,
        make: Callable[[Any], T] | None = None,
    ) -> None:
        self.kind = kind
        self.group = group
        self._builtin = dict(builtin)
        self._remedy = remedy
        self._make = make
        self._loaded: dict[str, T] = {}

    @cached_property
    def _targets(self) -> dict[str, str]:
        """Built-in names first, in their order; then those of other packages, sorted."""
        targets = dict(self._builtin)
        for entry in sorted(importlib.metadata.entry_points(group=self.group)):
            if targets.get(entry.name, entry.value) != entry.value:
                raise ConfigError(
                    f"Two packages register the {self.kind} {entry.name!r}: "
                    f"{targets[entry.name]} and {entry.value}. Rename one, or uninstall it."
                )
            targets[entry.name] = entry.value
        return targets

    def __getitem__(self, name: str) -> T:
        """The thing of that name.

        Raises:
            KeyError: There is none; use `get_known` for a message.
            ConfigError: Its module cannot be imported.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name, self._targets[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def __contains__(self, name: object) -> bool:
        return name in self._targets  # Mapping's own would import it

    def names(self) -> list[str]:
        """All names, built-in ones first; nothing is imported."""
        return list(self._targets)

    def get_known(self, name: str) -> T:
        """The thing of that name.

        Raises:
            UnknownNameError: There is none; the message says what there is.
            ConfigError: Its module cannot be imported.
        """
        if name not in self._targets:
            raise unknown_name(self.kind, name, self._targets, remedy=self._remedy)
        return self[name]

    def register(self, name: str, thing: T) -> None:
        """Add a thing for the life of this process (a notebook, a test).

        Raises:
            ConfigError: The name is taken.
        """
        if name in self._targets:
            raise ConfigError(f"There is a {self.kind} {name!r} already. Choose another name.")
        self._targets[name] = f"{type(thing).__module__}:{name}"
        self._loaded[name] = thing

    def unregister(self, name: str) -> None:
        """Remove what `register` added; a name that is not there is ignored."""
        if name not in self._builtin:
            self._targets.pop(name, None)
            self._loaded.pop(name, None)

    def _load(self, name: str, target: str) -> T:
        module_name, _, attribute = target.partition(":")
        try:
            found: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            if name in self._builtin:
                raise
            raise ConfigError(
                f"The {self.kind} {name!r} of another package ({target}) cannot be imported "
                f"({type(error).__name__}: {error}). Repair or uninstall that package."
            ) from error
        return cast(T, found) if self._make is None else self._make(found)
