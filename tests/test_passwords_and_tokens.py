"""Passwords as bcrypt hashes off the loop, and tokens that are derived from the server's secret, never stored."""

from __future__ import annotations

import asyncio
import hmac
import re
from hashlib import sha256
from uuid import UUID

import bcrypt
import pytest

from chat.names import NameStreams
from chat.passwords import MAX_WAITING, PasswordHasher
from chat.refusals import TooBusy
from chat.tokens import TokenMint, token_digest

SECRET = b"a secret for the tests"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The hashes against which bcrypt has checked a password."""
    checked: list[bytes] = []
    check = bcrypt.checkpw

    def counted(password: bytes, hashed_password: bytes) -> bool:
        checked.append(hashed_password)
        return check(password, hashed_password)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    return checked


@pytest.mark.gen_test
async def test_the_password_that_was_hashed_is_the_right_one(passwords: PasswordHasher) -> None:
    password_hash = await passwords.hash("Passw0rd!")

    assert await passwords.verify("Passw0rd!", password_hash)


@pytest.mark.gen_test
@pytest.mark.parametrize("wrong", ["passw0rd!", "Passw0rd", "Passw0rd!!", "", " Passw0rd!", "Passw0rd!\0"])
async def test_any_other_password_is_wrong(passwords: PasswordHasher, wrong: str) -> None:
    password_hash = await passwords.hash("Passw0rd!")

    assert not await passwords.verify(wrong, password_hash)


@pytest.mark.gen_test
async def test_every_character_of_eighty_bytes_counts(passwords: PasswordHasher) -> None:
    # bcrypt alone would look at 72 bytes, which is 18 of these characters.
    password = "😀" * 20
    assert len(password.encode()) == 80
    password_hash = await passwords.hash(password)

    assert await passwords.verify(password, password_hash)
    assert not await passwords.verify(password[:-1] + "😁", password_hash)
    assert not await passwords.verify(password[:-1], password_hash)


@pytest.mark.gen_test
async def test_equal_passwords_have_different_hashes_at_the_cost_that_was_asked_for(passwords: PasswordHasher) -> None:
    first, second = await asyncio.gather(passwords.hash("Passw0rd!"), passwords.hash("Passw0rd!"))

    assert first != second
    assert first.startswith("$2b$04$")
    assert second.startswith("$2b$04$")


@pytest.mark.gen_test
async def test_those_who_would_wait_behind_too_many_are_told_so(passwords: PasswordHasher) -> None:
    outcomes = await asyncio.gather(
        *(passwords.hash("Passw0rd!") for _ in range(MAX_WAITING + 5)), return_exceptions=True
    )

    refused = [outcome for outcome in outcomes if isinstance(outcome, TooBusy)]
    assert len(refused) == 5
    assert len([outcome for outcome in outcomes if isinstance(outcome, str)]) == MAX_WAITING
    assert await passwords.verify("Passw0rd!", await passwords.hash("Passw0rd!"))


@pytest.mark.gen_test
async def test_an_unknown_user_costs_a_check_at_the_same_cost_as_a_known_one(
    passwords: PasswordHasher, checks: list[bytes]
) -> None:
    password_hash = await passwords.hash("Passw0rd!")

    assert not await passwords.verify("Passw0rd!", None)
    assert [hashed[:7] for hashed in checks] == [b"$2b$04$"]
    assert not await passwords.verify("Passw0rd?", password_hash)
    assert [hashed[:7] for hashed in checks] == [b"$2b$04$"] * 2


@pytest.mark.gen_test
async def test_the_first_unknown_user_costs_no_more_than_the_others(
    passwords: PasswordHasher, checks: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashed(password: bytes, salt: bytes) -> bytes:
        raise AssertionError("a hash takes as long as a check")

    monkeypatch.setattr(bcrypt, "hashpw", hashed)

    assert not await passwords.verify("Passw0rd!", None)
    assert len(checks) == 1


@pytest.mark.gen_test
async def test_no_password_is_right_for_an_unknown_user(passwords: PasswordHasher) -> None:
    guesses = ["", "Passw0rd!", "a password that nobody has"]

    assert [await passwords.verify(guess, None) for guess in guesses] == [False] * 3


@pytest.mark.gen_test
async def test_an_unknown_user_who_came_at_a_busy_moment_spoils_nothing_for_later_ones(
    passwords: PasswordHasher,
) -> None:
    at_once = [passwords.hash("Passw0rd!") for _ in range(MAX_WAITING)]
    outcomes = await asyncio.gather(*at_once, passwords.verify("Passw0rd!", None), return_exceptions=True)
    assert isinstance(outcomes[-1], TooBusy)

    assert not await passwords.verify("Passw0rd!", None)


def derived(secret: bytes, account_id: int, generation: int) -> str:
    """The token by its definition, step by step: a UUID of version 4 from the first 16 bytes of an HMAC."""
    key = hmac.new(secret, b"minutebook tokens", "sha256").digest()
    digest = bytearray(hmac.new(key, b"%d:%d" % (account_id, generation), "sha256").digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x40
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def test_a_token_stays_the_same_for_ever() -> None:
    # A change here ends every token that was ever given out.
    assert TokenMint(SECRET).token(1000, 1) == "82376636-5723-4c26-afc1-dbf9432cd538"


@pytest.mark.parametrize(("account_id", "generation"), [(999, 1), (1000, 1), (1000, 2), (1001, 17), (2**62, 2**40)])
def test_a_token_is_an_hmac_of_account_and_generation(account_id: int, generation: int) -> None:
    assert TokenMint(SECRET).token(account_id, generation) == derived(SECRET, account_id, generation)


def test_a_token_is_a_uuid_in_its_usual_form() -> None:
    token = TokenMint(SECRET).token(1000, 1)

    assert str(UUID(token)) == token
    assert UUID(token).version == 4


def test_tokens_differ_by_account_by_generation_and_by_secret() -> None:
    pairs = [(account_id, generation) for account_id in (1, 11, 111, 1000) for generation in (1, 11, 111)]
    tokens = [TokenMint(secret).token(*pair) for secret in (SECRET, SECRET + b"!", b"") for pair in pairs]

    assert len(set(tokens)) == len(tokens)


def test_a_token_s_digest_is_its_sha_256_and_any_text_has_one() -> None:
    token = TokenMint(SECRET).token(1000, 1)

    assert token_digest(token) == sha256(token.encode()).hexdigest()
    assert re.fullmatch("[0-9a-f]{64}", token_digest("no token at all: \ud800 \0 😀"))


def test_the_stream_of_a_name_stays_the_same_for_ever_and_does_not_tell_the_name() -> None:
    streams = NameStreams(SECRET)
    key = hmac.new(SECRET, b"minutebook names", "sha256").digest()

    assert streams.account("alice") == "username-" + hmac.new(key, b"username:alice", "sha256").hexdigest()[:32]
    assert streams.channel("alice") == "channel-" + hmac.new(key, b"channel:alice", "sha256").hexdigest()[:32]
    assert NameStreams(b"another").account("alice") != streams.account("alice")
