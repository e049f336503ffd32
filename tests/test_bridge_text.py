"""Texts on their way to Discord and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.bridge.text import LIMIT, incoming, outgoing

PREFIX = "**bob**: "


def units(text: str) -> int:
    """How long a text is in UTF-16."""
    return len(text.encode("utf-16-le")) // 2


def squeezed(text: str) -> str:
    """The text without its white space."""
    return "".join(text.split())


def whole(parts: list[str]) -> str:
    """What the parts say together, each behind its author's name, without white space; none of them says nothing."""
    said = [squeezed(part.removeprefix(PREFIX)) for part in parts]
    assert all(part.startswith(PREFIX) for part in parts)
    assert all(said)
    return "".join(said)


def test_a_short_text_is_one_message_with_its_author_before_it() -> None:
    assert outgoing("bob", "hello *there*\nall") == ["**bob**: hello *there*\nall"]


@pytest.mark.parametrize("text", ["  hello \n", "\n\nhello\t"])
def test_white_space_around_a_text_is_not_sent(text: str) -> None:
    assert outgoing("bob", text) == ["**bob**: hello"]


@pytest.mark.parametrize(
    ("username", "shown"),
    [
        ("a*b", r"a\*b"),
        ("x**: hi", r"x\*\*: hi"),
        ("`~|\\", r"\`\~\|\\"),
        ("some_user", "some_user"),
        ("@everyone", "@everyone"),
    ],
)
def test_a_name_cannot_end_its_own_bold_print(username: str, shown: str) -> None:
    assert outgoing(username, "hi") == [f"**{shown}**: hi"]


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        ("a word. another\nline" + "y" * 1300 + "\n \n", "next paragraph"),
        ("a word. " + "y" * 1300 + "\n", "next line"),
        ("many words " + "y" * 1300 + "!\u201d ".replace("\u201d", '"'), "next sentence"),
        ("many " + "y" * 1300 + " ", "word"),
    ],
    ids=["a blank line", "the end of a line", "the end of a sentence", "a space"],
)
def test_a_long_text_is_cut_at_the_best_place(before: str, behind: str) -> None:
    # Behind the place come worse ones, at which it must not be cut.
    rest = behind + "z" * 800 if " " not in behind else behind + " z" * 400

    assert outgoing("bob", before + rest) == [PREFIX + before.rstrip(), PREFIX + rest]


def test_a_text_without_a_good_place_in_its_latter_half_is_not_cut_to_a_stump() -> None:
    first, second = outgoing("bob", "short\n\n" + "y" * 2500)

    assert units(first) == LIMIT
    assert whole([first, second]) == "short" + "y" * 2500


def test_no_part_of_a_long_text_looks_as_if_somebody_else_said_it() -> None:
    parts = outgoing("bob", "y" * 1500 + "\n\n**alice**: " + "z" * 1500)

    assert [part[:20] for part in parts] == [PREFIX + "y" * 11, PREFIX + "**alice**: "]


def test_what_fits_exactly_is_one_message_and_one_unit_more_is_two() -> None:
    room = LIMIT - len(PREFIX)

    assert [units(part) for part in outgoing("bob", "y" * room)] == [LIMIT]
    assert [units(part) for part in outgoing("bob", "y" * (room + 1))] == [LIMIT, len(PREFIX) + 1]
    assert [units(part) for part in outgoing("bob", "y" * (room - 1) + "\U0001f600")] == [LIMIT - 1, len(PREFIX) + 2]


def test_a_word_that_ends_where_the_room_ends_stays_whole() -> None:
    words = "y" * 1200 + " " + "z" * (LIMIT - len(PREFIX) - 1201)

    assert outgoing("bob", f"{words} end") == [PREFIX + words, PREFIX + "end"]


@pytest.mark.parametrize(
    "character",
    ["e\u0301", "\U0001f44d\U0001f3fd", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f"],
    ids=["an accent", "a skin tone", "a family", "a variant"],
)
def test_no_character_is_cut_in_two(character: str) -> None:
    for shift in range(len(character) + 2):
        parts = outgoing("bob", "y" * shift + character * 1200)

        assert len(parts) > 1
        for part in parts[1:]:
            assert part.startswith(PREFIX + character)


def test_a_text_of_nothing_but_one_endless_character_is_cut_all_the_same() -> None:
    parts = outgoing("bob", "e" + "\u0301" * 3999)

    assert whole(parts) == "e" + "\u0301" * 3999


@given(st.text(st.sampled_from("ab .\n\t\u0301\u200d\U0001f600\U0001f3fd\U0001f1e6"), max_size=6), st.integers(1, 1500))
@settings(max_examples=60, deadline=None)
def test_whatever_the_text_is_its_parts_are_sent_as_they_are_and_nothing_is_lost(piece: str, times: int) -> None:
    text = (piece * times)[:4000]

    parts = outgoing("bob", text)

    assert all(part == part.strip() and units(part) <= LIMIT for part in parts)
    assert whole(parts) == squeezed(text)
    assert len(parts) <= 1 + 2 * units(text) // LIMIT * 2


def test_attachments_are_links_behind_what_was_said() -> None:
    assert incoming("look", ["https://a/1.png", "https://a/2.png"]) == "look\nhttps://a/1.png\nhttps://a/2.png"
    assert incoming("", ["https://a/1.png"]) == "https://a/1.png"
    assert incoming("", []) == ""
