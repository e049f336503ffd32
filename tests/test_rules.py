"""The rules: what is refused and why, at the edges; and what follows from what is accepted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat import rules
from chat.events import (
    AccountBanned,
    AccountRegistered,
    AccountSilenced,
    AccountVerified,
    BanRemoved,
    ChannelBridged,
    ChannelCreated,
    ChannelUnbridged,
    DeviceClaimed,
    DirectMessageSent,
    DiscordMessageReceived,
    DiscordMessageRequested,
    DiscordUserSeen,
    MemberAdded,
    MessageDeleted,
    MessageEdited,
    MessageSent,
    SilenceRemoved,
    TokenIssued,
    TokenRevoked,
    UsernameClaimed,
)
from chat.names import channel_name, safe_name
from chat.refusals import Malformed, Reason, Refused

quick = settings(deadline=None, max_examples=100)


def refusal(refused: pytest.ExceptionInfo[Refused]) -> Reason:
    return refused.value.reason


# --- passwords ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("Passw0rd!", id="an ordinary one"),
        pytest.param("Aa1!aaaa", id="8 characters"),
        pytest.param("Aa1!" + "a" * 16, id="20 characters"),
        pytest.param("A1!" + "😀" * 17, id="20 characters of four bytes"),
        pytest.param("AAAA111!", id="no small letter is asked for"),
        pytest.param("Ünï1_aaa", id="a capital that is not ASCII, and an underscore is special"),
        pytest.param("Passw٣rd!", id="a number of another script"),
        pytest.param("Passw0rd€", id="a currency sign is special"),
        pytest.param("Passw0rd😀", id="an emoji is special"),
        pytest.param("Passw0rd\u200b", id="a zero-width space is no white space"),
    ],
)
def test_a_good_password_is_taken(password: str) -> None:
    rules.check_password(password)


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("", id="nothing"),
        pytest.param("Aa1!aaa", id="7 characters"),
        pytest.param("Aa1!" + "a" * 17, id="21 characters"),
        pytest.param("Password!", id="no number"),
        pytest.param("passw0rd!", id="no capital"),
        pytest.param("Passw0rds", id="no special symbol"),
        pytest.param("Passwörd0", id="a letter that is not ASCII is no special symbol"),
        pytest.param("Passw rd0!", id="a space within"),
        pytest.param(" Passw0rd!", id="a space before"),
        pytest.param("Passw0rd!\n", id="a line break behind"),
        pytest.param("Passw\t0rd!", id="a tab"),
        pytest.param("Passw\u00a00rd!", id="a no-break space"),
        pytest.param("Passw\u30000rd!", id="an ideographic space"),
        pytest.param("Passw0rd ", id="a space is no special symbol"),
    ],
)
def test_a_weak_password_is_refused(password: str) -> None:
    with pytest.raises(Refused) as refused:
        rules.check_password(password)

    assert refusal(refused) is Reason.WEAK_PASSWORD


# --- names of people ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "username",
    [
        pytest.param("abc", id="3 characters"),
        pytest.param("a" * 20, id="20 characters"),
        pytest.param("😀" * 20, id="20 characters of four bytes"),
        pytest.param("a b", id="a space within"),
        pytest.param(" abc", id="a space before"),
        pytest.param("a" * 18 + "  ", id="20 characters with the spaces"),
    ],
)
def test_a_good_username_is_taken(username: str) -> None:
    rules.check_username(username)
    rules.check_new_username(username)


@pytest.mark.parametrize(
    "username",
    [
        pytest.param("", id="nothing"),
        pytest.param("ab", id="2 characters"),
        pytest.param("a" * 21, id="21 characters"),
        pytest.param("   ", id="spaces only"),
        pytest.param(" ab ", id="2 characters between spaces"),
        pytest.param("a" * 20 + " ", id="21 characters with the space"),
    ],
)
@pytest.mark.parametrize("check", [rules.check_username, rules.check_new_username])
def test_a_bad_username_is_refused(check: object, username: str) -> None:
    assert callable(check)
    with pytest.raises(Refused) as refused:
        check(username)

    assert refusal(refused) is Reason.BAD_USERNAME


@pytest.mark.parametrize("character", ["\n", "\t", "\x01", "\x7f", "\x85", "\u2028", "\u2029"])
def test_a_new_username_holds_no_control_character(character: str) -> None:
    with pytest.raises(Malformed) as malformed:
        rules.check_new_username(f"al{character}ice")

    assert malformed.value.field == "username"


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("alice", "alice"),
        ("Alice", "alice"),
        ("  Alice ", "alice"),
        ("Al Ice", "al_ice"),
        ("al_ice", "al_ice"),
        ("AL  ICE", "al__ice"),
        ("ÄRGER", "ärger"),
        ("   ", ""),
    ],
)
def test_names_are_compared_by_their_safe_form(name: str, safe: str) -> None:
    assert safe_name(name) == safe


@quick
@given(st.text(max_size=30))
def test_a_safe_name_is_its_own_safe_name(name: str) -> None:
    assert safe_name(safe_name(name)) == safe_name(name)


# --- names of channels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d", "den", "d" * 64, "a b", " den ", "ärger", "😀" * 64, "a-b_c.d/e"])
def test_a_good_channel_name_is_taken(name: str) -> None:
    rules.check_channel_name(name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="nothing"),
        pytest.param("   ", id="white space only"),
        pytest.param("d" * 65, id="65 characters"),
        pytest.param("#den", id="a # before"),
        pytest.param("de#n", id="a # within"),
        pytest.param("de\nn", id="a line break"),
        pytest.param("de\x00n", id="a NUL"),
        pytest.param("de\x1bn", id="an escape character"),
        pytest.param("de\u2028n", id="a line separator"),
    ],
)
def test_a_bad_channel_name_is_refused(name: str) -> None:
    with pytest.raises(Malformed) as malformed:
        rules.check_channel_name(name)

    assert malformed.value.field == "name"


@pytest.mark.parametrize(("given_name", "kept"), [("#den", "den"), ("den", "den"), ("##den", "#den"), ("#", "")])
def test_a_channel_is_kept_without_its_leading_sign(given_name: str, kept: str) -> None:
    assert channel_name(given_name) == kept


# --- texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a", " ", "a" * 4000, "😀" * 4000, "line\nbreak\ttab"])
def test_a_text_of_1_to_4000_characters_is_taken(text: str) -> None:
    rules.check_text("message", text)


@pytest.mark.parametrize("text", ["", "a" * 4001])
def test_another_text_is_refused_with_its_field_s_name(text: str) -> None:
    with pytest.raises(Malformed, match="1 to 4,000 characters") as malformed:
        rules.check_text("message", text)

    assert malformed.value.field == "message"


# --- what follows ------------------------------------------------------------------------------------------------


def test_registering_claims_the_name_and_makes_the_account() -> None:
    assert rules.register(1000, "Al Ice", "hash", taken=False) == (
        UsernameClaimed(1000),
        AccountRegistered(1000, "Al Ice", "al_ice", "hash"),
    )


def test_a_taken_name_cannot_be_registered() -> None:
    with pytest.raises(Refused) as refused:
        rules.register(1000, "alice", "hash", taken=True)

    assert refusal(refused) is Reason.USERNAME_TAKEN


def test_a_token_is_issued() -> None:
    assert rules.issue_token(1000, 3, "digest") == TokenIssued(1000, 3, "digest")


def test_a_channel_is_made_by_somebody_or_by_nobody() -> None:
    assert rules.make_channel("The Den", 1000, taken=False) == ChannelCreated("The Den", "the_den", 1000)
    assert rules.make_channel("announce", None, taken=False) == ChannelCreated("announce", "announce", None)


def test_a_channel_s_name_cannot_be_taken_twice() -> None:
    with pytest.raises(Refused) as refused:
        rules.make_channel("den", 1000, taken=True)

    assert refusal(refused) is Reason.CHANNEL_EXISTS


def test_a_member_brings_somebody_in() -> None:
    assert rules.add_member(7, 1001, 1000, adder_is_member=True, is_member=False) == MemberAdded(7, 1001, 1000)


def test_nothing_happens_to_somebody_who_is_in_already() -> None:
    assert rules.add_member(7, 1001, 1000, adder_is_member=True, is_member=True) is None


@pytest.mark.parametrize("is_member", [False, True])
def test_nobody_is_brought_in_by_somebody_who_is_not(is_member: bool) -> None:
    with pytest.raises(Refused) as refused:
        rules.add_member(7, 1001, 1000, adder_is_member=False, is_member=is_member)

    assert refusal(refused) is Reason.NOT_A_MEMBER


@pytest.mark.parametrize(
    ("channel", "is_member", "may"),
    [("den", True, True), ("den", False, False), ("announce", False, True), ("Announce", False, False)],
)
def test_members_read_a_channel_and_everyone_the_announcements(channel: str, is_member: bool, may: bool) -> None:
    assert rules.may_read(channel, is_member=is_member) is may


def test_a_message_is_sent_by_those_who_may_write() -> None:
    assert rules.send_message(7, 1000, "hello", may_write=True) == MessageSent(7, 1000, "hello")
    with pytest.raises(Refused) as refused:
        rules.send_message(7, 1000, "hello", may_write=False)
    assert refusal(refused) is Reason.NOT_A_MEMBER


@pytest.mark.parametrize("recipient", [1000, 1001])
def test_a_direct_message_goes_to_anybody_oneself_included(recipient: int) -> None:
    assert rules.send_direct_message(1000, recipient, "hello") == DirectMessageSent(1000, recipient, "hello")


def test_a_message_is_deleted_by_its_sender_only() -> None:
    assert rules.delete_message(7, sender_id=1000, deleted_by=1000) == MessageDeleted(7, 1000)
    with pytest.raises(Refused) as refused:
        rules.delete_message(7, sender_id=1000, deleted_by=1001)
    assert refusal(refused) is Reason.NOT_YOUR_MESSAGE


# --- devices, silences and bans ----------------------------------------------------------------------------------

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_an_account_without_a_device_is_verified_and_claims_none() -> None:
    assert rules.verify(1000, None, verified_by_device=None) == (AccountVerified(1000, False, None), None)


def test_a_device_is_claimed_by_the_first_account_that_it_verifies() -> None:
    assert rules.verify(1000, "ab", verified_by_device=None) == (
        AccountVerified(1000, False, "ab"),
        DeviceClaimed(1000),
    )


def test_a_further_account_of_a_device_is_flagged_and_claims_nothing() -> None:
    assert rules.verify(1001, "ab", verified_by_device=1000) == (AccountVerified(1001, True, "ab"), None)


@pytest.mark.parametrize(
    ("silenced_until", "seconds"),
    [
        (None, 0),
        (NOW - timedelta(days=1), 0),
        (NOW, 0),
        (NOW + timedelta(microseconds=1), 1),
        (NOW + timedelta(seconds=1), 1),
        (NOW + timedelta(seconds=59.5), 60),
        (NOW + timedelta(days=365), 365 * 24 * 60 * 60),
    ],
)
def test_what_is_left_of_a_silence_is_counted_in_whole_seconds_upwards(
    silenced_until: datetime | None, seconds: int
) -> None:
    assert rules.silence_left(silenced_until, NOW) == seconds


def test_who_is_neither_banned_nor_silenced_may_speak() -> None:
    rules.check_may_speak(is_banned=False, silenced_for=0)


@pytest.mark.parametrize(
    ("is_banned", "silenced_for", "reason", "seconds"),
    [(True, 0, Reason.BANNED, None), (True, 5, Reason.BANNED, None), (False, 5, Reason.SILENCED, 5)],
)
def test_who_is_banned_or_silenced_may_not(
    is_banned: bool, silenced_for: int, reason: Reason, seconds: int | None
) -> None:
    with pytest.raises(Refused) as refused:
        rules.check_may_speak(is_banned=is_banned, silenced_for=silenced_for)

    assert (refusal(refused), refused.value.seconds) == (reason, seconds)


def test_somebody_is_silenced_whether_silenced_already_or_not_and_let_speak_only_if_silenced() -> None:
    assert rules.silence(1000, 60, "spam", 1001) == AccountSilenced(1000, 60, "spam", 1001)
    assert rules.remove_silence(1000, 1001, silenced_for=1) == SilenceRemoved(1000, 1001)
    with pytest.raises(Refused) as refused:
        rules.remove_silence(1000, 1001, silenced_for=0)
    assert refusal(refused) is Reason.NOTHING_TO_UNDO


def test_a_ban_is_for_those_who_are_no_operators_and_happens_once() -> None:
    assert rules.ban(1000, "spam", 1001, is_operator=False, is_banned=False) == AccountBanned(1000, "spam", 1001)
    assert rules.ban(1000, "spam", 1001, is_operator=False, is_banned=True) is None
    with pytest.raises(Refused) as refused:
        rules.ban(1000, "spam", 1001, is_operator=True, is_banned=False)
    assert refusal(refused) is Reason.NOT_FOR_AN_OPERATOR


def test_only_a_ban_is_removed() -> None:
    assert rules.remove_ban(1000, 1001, is_banned=True) == BanRemoved(1000, 1001)
    with pytest.raises(Refused) as refused:
        rules.remove_ban(1000, 1001, is_banned=False)
    assert refusal(refused) is Reason.NOTHING_TO_UNDO


def test_a_token_is_revoked() -> None:
    assert rules.revoke_token(1000, 4) == TokenRevoked(1000, 4)


@pytest.mark.parametrize("seconds", [1, 60, 365 * 24 * 60 * 60])
def test_a_silence_of_a_second_to_a_year_is_taken(seconds: int) -> None:
    rules.check_silence(seconds)


@pytest.mark.parametrize("seconds", [0, -5, 365 * 24 * 60 * 60 + 1])
def test_another_silence_is_refused(seconds: int) -> None:
    with pytest.raises(Malformed, match="1 to 31,536,000") as malformed:
        rules.check_silence(seconds)

    assert malformed.value.field == "seconds"


def test_reasons_and_devices_may_be_empty_and_have_their_lengths() -> None:
    for text in ("", "é" * 256):
        rules.check_reason(text)
        rules.check_device(text)
    rules.check_reason("é" * 500)
    with pytest.raises(Malformed, match="reason: must be at most 500"):
        rules.check_reason("é" * 501)
    with pytest.raises(Malformed, match="device: must be at most 256"):
        rules.check_device("é" * 257)


# --- Discord -----------------------------------------------------------------------------------------------------

LINK = "https://discord.com/channels/1/2/3"


@pytest.mark.parametrize("text", [" ", "\n\t ", "\u3000"])
def test_white_space_alone_is_no_text_for_discord(text: str) -> None:
    rules.check_text("message", text)
    with pytest.raises(Malformed, match="message: must hold more than white space"):
        rules.check_text_for_discord("message", text)


@pytest.mark.parametrize("text", ["", "x" * 4001])
def test_a_text_for_discord_has_the_length_of_every_text(text: str) -> None:
    rules.check_text_for_discord("message", "x" * 4000)
    with pytest.raises(Malformed, match="1 to 4,000"):
        rules.check_text_for_discord("message", text)


def test_a_delivery_goes_to_a_channel_or_to_a_person() -> None:
    to_channel = rules.request_delivery(1000, "hello", discord_channel_id=2**60, of_message=True)
    to_person = rules.request_delivery(1000, "hello", discord_user_id=7, recipient_id=1001, source="sealed")

    assert to_channel == DiscordMessageRequested(1000, str(2**60), None, "hello", of_message=True)
    assert to_person == DiscordMessageRequested(1000, None, "7", "hello", source="sealed", recipient_id=1001)


def test_somebody_on_discord_is_noted_under_a_new_name_only() -> None:
    assert rules.see_discord_user(7, "al", known_as=None) == DiscordUserSeen("7", "al")
    assert rules.see_discord_user(7, "al", known_as="bo") == DiscordUserSeen("7", "al")
    assert rules.see_discord_user(7, "al", known_as="al") is None


def test_a_bridge_has_one_end_on_either_side() -> None:
    def bridge(*, bridged_to: int | None, bridged_from: int | None, may: bool = True) -> ChannelBridged | None:
        return rules.bridge(5, 70, 900, 1000, may_bridge=may, bridged_to=bridged_to, bridged_from=bridged_from)

    assert bridge(bridged_to=None, bridged_from=None) == ChannelBridged(5, "70", "900", 1000)
    assert bridge(bridged_to=70, bridged_from=5) is None
    for ends in ((71, None), (None, 6), (71, 6)):
        with pytest.raises(Refused) as refused:
            bridge(bridged_to=ends[0], bridged_from=ends[1])
        assert refusal(refused) is Reason.ALREADY_BRIDGED
    with pytest.raises(Refused) as refused:
        bridge(bridged_to=None, bridged_from=None, may=False)
    assert refusal(refused) is Reason.NOT_A_MEMBER


def test_who_may_not_bridge_a_channel_does_not_end_its_bridge() -> None:
    assert rules.unbridge(5, 70, 1000, may_bridge=True) == ChannelUnbridged(5, "70", 1000)
    with pytest.raises(Refused) as refused:
        rules.unbridge(5, 70, 1000, may_bridge=False)
    assert refusal(refused) is Reason.NOT_A_MEMBER


def test_a_message_from_discord_is_recorded_with_where_it_is_from() -> None:
    recorded = rules.receive_message(5, 1000, "hello", discord_channel_id=70, discord_message_id=2**60)

    assert recorded == (MessageSent(5, 1000, "hello"), DiscordMessageReceived("70", str(2**60)))


def test_an_edit_that_changes_nothing_is_none() -> None:
    assert rules.edit_message(9, 1000, "new", standing="old") == MessageEdited(9, "new", 1000)
    assert rules.edit_message(9, 1000, "old", standing="old") is None


def test_a_message_s_id_on_discord_tells_when_it_was_said() -> None:
    # The example of Discord's reference.
    assert rules.said_at(175928847299117063) == datetime(2016, 4, 30, 11, 18, 25, 796000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        pytest.param(["Alice B"], "Alice B", id="an ordinary one"),
        pytest.param(["a\nb\r\n c\x00\u2028d"], "a b c d", id="lines become one"),
        pytest.param(["al**: hi, I am\n**bo"], "al: hi, I am bo", id="no end of the bold type"),
        pytest.param(["al\u202eobla"], "alobla", id="no turn of the direction"),
        pytest.param(["al\ud800"], "al", id="half a character"),
        pytest.param(["\n*\x07", "alice"], "alice", id="nothing is left of the first"),
        pytest.param(["", " "], "somebody", id="nothing is left at all"),
        pytest.param(["👩\u200d🚀" * 3], "👩\u200d🚀" * 3, id="characters of several are whole"),
        pytest.param(["x" * 63 + " " + "y" * 9], "x" * 63, id="64 characters, and no space behind"),
    ],
)
def test_a_name_from_discord_is_one_short_line(names: list[str], shown: str) -> None:
    assert rules.discord_name(*names) == shown


@quick
@given(st.text(st.characters(), max_size=80), st.text(st.characters(), max_size=30))
def test_whatever_the_name_who_said_it_is_told_from_what_was_said(name: str, text: str) -> None:
    said_by = rules.said_by(rules.discord_name(name))
    recorded = rules.text_from_discord(said_by, text, LINK)

    assert rules.beginning_of(recorded) == said_by
    assert "\n" not in said_by
    assert recorded.encode("utf-8")
    assert "\0" not in recorded


def test_a_text_from_discord_loses_what_cannot_be_recorded() -> None:
    assert rules.text_from_discord("", "a\0b\ud83dc\n", LINK) == "a\ufffdb\ufffdc\n"


def test_a_long_text_from_discord_is_cut_and_ends_with_the_link_to_it() -> None:
    whole = rules.text_from_discord("**al**: ", "x" * 3992, LINK)
    cut = rules.text_from_discord("**al**: ", "x" * 3993, LINK)

    assert whole == "**al**: " + "x" * 3992
    assert cut == "**al**: " + "x" * (3992 - len(LINK) - 2) + f"… {LINK}"
    assert len(cut) == 4000
    rules.check_text("message", cut)


def test_a_text_that_nobody_says_through_the_bot_has_no_such_beginning() -> None:
    for text in ("hello", "**bold** words: none", "so: **al**: hello", ""):
        assert rules.beginning_of(text) == ""
