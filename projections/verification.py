"""Verification: which accounts registered a connection once, and which account each device verified first."""

from __future__ import annotations

import sqlalchemy as sa

from eventstore.projection import Change, Projection, Source, number, text
from eventstore.reader import Reader
from eventstore.statements import Statement
from eventstore.tables import NAME
from projections.schema import metadata, named_by, told

NOT_VERIFIED, MULTIACCOUNT, VERIFIED = -1, 0, 1

verifications = sa.Table(
    "verifications",
    metadata,
    sa.Column("account_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("is_multiaccount", sa.Boolean, nullable=False),
)

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("device_digest", NAME, primary_key=True),
    sa.Column("account_id", sa.BigInteger, nullable=False),
)


def _verified(source: Source) -> sa.Insert:
    is_multiaccount = sa.cast(text(source, "is_multiaccount"), sa.Boolean)
    rows = sa.select(number(source, "account_id"), is_multiaccount).where(told(source, "AccountVerified"))
    return sa.insert(verifications).from_select(["account_id", "is_multiaccount"], rows)


def _claimed(source: Source) -> sa.Insert:
    rows = sa.select(named_by(source, "device-"), number(source, "account_id")).where(told(source, "DeviceClaimed"))
    return sa.insert(devices).from_select(["device_digest", "account_id"], rows)


# Both for both types, which come together: so the log compiles fewer statements.
_TYPES = frozenset({"AccountVerified", "DeviceClaimed"})

projection = Projection(
    name="verification",
    tables=(verifications, devices),
    changes=(Change(_TYPES, _verified), Change(_TYPES, _claimed)),
)

_STATUS = Statement(
    sa.select(verifications.c.is_multiaccount).where(
        verifications.c.account_id == sa.bindparam("account_id", type_=sa.BigInteger)
    )
)
_OF_DEVICE = Statement(
    sa.select(devices.c.account_id).where(devices.c.device_digest == sa.bindparam("digest", type_=sa.Text))
)


class Verification:
    """The queries about verified accounts."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def status(self, account_id: int) -> int:
        """1 for a verified account, 0 for one flagged as a multiaccount, -1 for one not verified yet or unknown."""
        row = await self._reader.fetch_one(_STATUS, account_id=account_id)
        if row is None:
            return NOT_VERIFIED
        return MULTIACCOUNT if row[0] else VERIFIED

    async def account_of_device(self, digest: str) -> int | None:
        """The first account that this device verified."""
        row = await self._reader.fetch_one(_OF_DEVICE, digest=digest)
        return None if row is None else int(row[0])
