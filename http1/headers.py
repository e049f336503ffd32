"""Headers as Tornado wants them, filled without a second look at what the parser has checked, or we have written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from tornado.httputil import HTTPHeaders

# Names beyond this are not remembered: whoever sends long ones shall not fill the memory with them.
_USUAL_LENGTH = 64
_NONE: Mapping[str, str] = {}


def normalized(name: str) -> str:
    """The name as Tornado writes it: `content-TYPE` is `Content-Type`."""
    return _remembered(name) if len(name) <= _USUAL_LENGTH else _capitalized(name)


@lru_cache(1024)
def _remembered(name: str) -> str:
    return _capitalized(name)


def _capitalized(name: str) -> str:
    return "-".join(word.capitalize() for word in name.split("-"))


@lru_cache(1024)
def _decoded(name: bytes) -> str:
    return _capitalized(name.decode("latin-1"))


class CheckedHeaders(HTTPHeaders):
    """Headers that are known to be good: `fields` by their normalized names, and what comes to them.

    Tornado's own class matches each name and value against its grammar, which llhttp has done by then, and takes ten
    times as long. This one overrides every method that touches the storage, so it depends on none of Tornado's
    private parts. Copies share their storage until one of them is changed, so that a copy costs next to nothing.
    """

    _is_shared = False

    def __init__(self, fields: Mapping[str, str] = _NONE) -> None:
        # Not the base's constructor, which would only make the storage that this class has in place of it.
        self._values: dict[str, list[str]] = {name: [value] for name, value in fields.items()}

    def copy(self) -> CheckedHeaders:
        """The same headers, of which a change is not seen in these, nor the other way round."""
        copied = CheckedHeaders.__new__(CheckedHeaders)
        copied._values = self._values
        copied._is_shared = self._is_shared = True
        return copied

    __copy__ = copy

    def append(self, name: bytes, value: bytes) -> None:
        """Adds a field line whose name and value are known to be good; for headers of which there is no copy yet."""
        key = _decoded(name) if len(name) <= _USUAL_LENGTH else _capitalized(name.decode("latin-1"))
        # llhttp leaves the white space behind a value to whoever wants it (RFC 9112, section 5).
        text = value.decode("latin-1").rstrip(" \t")
        if key in self._values:
            self._values[key].append(text)
        else:
            self._values[key] = [text]

    def value(self, name: str) -> str | None:
        """The lines of a name, which must be normalized, as one; None if there is none."""
        values = self._values.get(name)
        return None if values is None else ",".join(values)

    def get(self, name: str, default: Any = None) -> Any:
        """The lines of a name as one, or the default."""
        values = self._values.get(normalized(name))
        return default if values is None else ",".join(values)

    def add(self, name: str, value: str, **options: Any) -> None:
        """Adds a field line; raises `HTTPInputError` for what is none."""
        HTTPHeaders().add(name, value, **options)
        self._own().setdefault(normalized(name), []).append(value)

    def get_list(self, name: str) -> list[str]:
        """All values of a name, one for each of its lines."""
        return list(self._values.get(normalized(name), ()))

    def get_all(self) -> Iterable[tuple[str, str]]:
        """All lines, those of one name together."""
        return [(name, value) for name, values in self._values.items() for value in values]

    def __getitem__(self, name: str) -> str:
        return ",".join(self._values[normalized(name)])

    def __setitem__(self, name: str, value: str) -> None:
        self._own()[normalized(name)] = [value]

    def __delitem__(self, name: str) -> None:
        del self._own()[normalized(name)]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and normalized(name) in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _own(self) -> dict[str, list[str]]:
        """The storage, to be changed."""
        if self._is_shared:
            self._values = {name: values.copy() for name, values in self._values.items()}
            self._is_shared = False
        return self._values
