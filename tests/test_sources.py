"""Source addresses: sealed in the log, to be opened by the server's secret alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.sources import SourceSeal
from tests.conftest import SECRET

SEAL = SourceSeal(SECRET)


# Of one length, since HMAC fills short keys up with zeros.
SECRETS = st.binary(min_size=32, max_size=32)


@given(st.text(max_size=50), SECRETS, SECRETS)
def test_an_address_is_opened_by_the_secret_that_sealed_it_and_by_no_other(
    address: str, secret: bytes, other: bytes
) -> None:
    sealed = SourceSeal(secret).seal(address)

    assert SourceSeal(secret).open(sealed) == address
    assert (SourceSeal(other).open(sealed) is None) == (other != secret)


def test_the_same_address_never_looks_the_same_twice() -> None:
    assert len({SEAL.seal("192.0.2.1") for _ in range(100)}) == 100


@pytest.mark.parametrize("damaged", ["", "!", "c2VhbGVk", "A" * 80, "\u00e9"])
def test_what_is_damaged_opens_to_nothing(damaged: str) -> None:
    assert SEAL.open(damaged) is None
