"""Canonical JSON: one text for one value, which decodes to that value; what has no such text is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore import canonical
from eventstore.errors import InvalidEvent

quick = settings(deadline=None, max_examples=150)

# What Postgres can hold as text: no NUL; what UTF-8 can: no half of a surrogate pair.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["", "\\u0000", "\\", '"', "\\\\u0000", "/", "\u2028", "\x7f", "é", "😀", "a\nb\tc\r\x01"]
)
SCALARS = st.none() | st.booleans() | st.integers() | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=6)

# Ways to put a value deeper into another one.
WRAPPINGS: list[Callable[[object], object]] = [
    lambda value: [value],
    lambda value: {"key": value},
    lambda value: ["before", value, 3],
    lambda value: {"a": 1, "b": value, "c": None},
    lambda value: (value,),
]
DEPTHS = st.lists(st.sampled_from(WRAPPINGS), max_size=6)


class Flat(msgspec.Struct):
    text: str
    number: int
    a_later_field: str | None = None


def python_s(value: object) -> bytes:
    """The same form as the standard library's encoder makes it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def shuffled(value: Any, order: random.Random) -> Any:
    """An equal value whose mappings were filled in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(item, order)) for key, item in value.items()]
        order.shuffle(items)
        return dict(items)
    if isinstance(value, list):
        return [shuffled(item, order) for item in value]
    return value


def wrapped(value: object, wrappings: list[Callable[[object], object]]) -> object:
    for wrapping in wrappings:
        value = wrapping(value)
    return value


@quick
@given(VALUES)
def test_the_text_is_that_of_another_encoder_with_sorted_keys_and_no_white_space(value: object) -> None:
    assert canonical.encode(value) == python_s(value)


@quick
@given(VALUES)
def test_decoding_gives_the_value_back(value: object) -> None:
    decoded = json.loads(canonical.encode(value))

    assert decoded == value
    # `1 == True` in Python, but not in the log.
    assert repr(decoded) == repr(json.loads(python_s(value)))


@quick
@given(OBJECTS, st.randoms(use_true_random=False))
def test_the_order_in_which_a_mapping_was_filled_does_not_show(value: dict[str, object], order: random.Random) -> None:
    assert canonical.encode(shuffled(value, order)) == canonical.encode(value)


@quick
@given(TEXTS, st.integers(), st.none() | TEXTS)
def test_a_struct_is_written_like_a_mapping_of_its_fields(text: str, number: int, later: str | None) -> None:
    fields = {"number": number, "text": text, "a_later_field": later}

    assert canonical.encode(Flat(text, number, later)) == python_s(fields)


@quick
@given(st.floats(), DEPTHS)
def test_a_float_is_refused_at_any_depth(value: float, depths: list[Callable[[object], object]]) -> None:
    with pytest.raises(InvalidEvent):
        canonical.encode(wrapped(value, depths))


@quick
@given(TEXTS, TEXTS, DEPTHS, st.booleans())
def test_a_nul_is_refused_at_any_depth(
    before: str, behind: str, depths: list[Callable[[object], object]], as_key: bool
) -> None:
    text = f"{before}\0{behind}"

    with pytest.raises(InvalidEvent, match="NUL"):
        canonical.encode(wrapped({text: 1} if as_key else text, depths))


@quick
@given(TEXTS, st.characters(categories=["Cs"]), TEXTS, DEPTHS, st.booleans())
def test_a_lone_surrogate_is_refused_at_any_depth(
    before: str, half: str, behind: str, depths: list[Callable[[object], object]], as_key: bool
) -> None:
    text = f"{before}{half}{behind}"

    with pytest.raises(InvalidEvent):
        canonical.encode(wrapped({text: 1} if as_key else text, depths))


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "a\\u0000b\\"])
def test_the_characters_of_an_escaped_nul_are_text_like_any_other(text: str) -> None:
    encoded = canonical.encode({"text": text})

    assert json.loads(encoded) == {"text": text}


def test_an_escaped_nul_hides_no_real_one_behind_it() -> None:
    with pytest.raises(InvalidEvent, match="NUL"):
        canonical.encode({"first": "\\u0000", "second": "\0"})


@pytest.mark.parametrize("value", [object(), {"key": object()}, {None: 1}, {(1, 2): 1}, [lambda: None]])
def test_what_json_has_no_form_for_is_refused(value: object) -> None:
    with pytest.raises(InvalidEvent, match="canonical JSON"):
        canonical.encode(value)
