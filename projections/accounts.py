"""Accounts: who there is, and by which name."""

from __future__ import annotations

import sqlalchemy as sa

from chat.commands import Account, Credentials
from chat.names import FIRST_PERSON_ID
from eventstore.projection import Change, Projection, Source, number, of_type, text
from eventstore.reader import Reader
from eventstore.statements import Statement
from eventstore.tables import NAME
from projections.schema import metadata, named_by, told

accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("account_id", sa.BigInteger, primary_key=True, autoincrement=False),
    # Both null once they are erased. The row stays: ids are never given twice.
    sa.Column("username", sa.Text),
    sa.Column("safe_name", NAME, unique=True),
    sa.Column("password_hash", sa.Text),
)


def _registered(source: Source) -> sa.Insert:
    # Of one that was erased only its stream says who it was; everything else is null.
    account_id = sa.cast(named_by(source, "account-"), sa.BigInteger)
    rows = sa.select(
        account_id, text(source, "username"), text(source, "safe_name"), text(source, "password_hash")
    ).where(of_type(source, "AccountRegistered"))
    return sa.insert(accounts).from_select(["account_id", "username", "safe_name", "password_hash"], rows)


def _erased(source: Source) -> sa.Update:
    account_id = number(source, "account_id")
    erased = sa.select(account_id).where(told(source, "Erased"), account_id.is_not(None))
    nothing = {"username": sa.null(), "safe_name": sa.null(), "password_hash": sa.null()}
    return sa.update(accounts).where(accounts.c.account_id.in_(erased)).values(nothing)


projection = Projection(
    name="accounts",
    tables=(accounts,),
    changes=(
        Change(frozenset({"AccountRegistered"}), _registered),
        Change(frozenset({"Erased"}), _erased),
    ),
)

_BY_NAME = Statement(
    sa.select(accounts.c.account_id, accounts.c.username, accounts.c.password_hash).where(
        accounts.c.safe_name == sa.bindparam("safe", type_=sa.Text)
    )
)
_BY_ID = Statement(
    sa.select(accounts.c.account_id, accounts.c.username).where(
        accounts.c.account_id == sa.bindparam("account_id", type_=sa.BigInteger), accounts.c.username.is_not(None)
    )
)
_IS_KNOWN = Statement(
    sa.select(accounts.c.account_id).where(accounts.c.account_id == sa.bindparam("account_id", type_=sa.BigInteger))
)
_LAST_ID = Statement(sa.select(sa.func.max(accounts.c.account_id)))


class Accounts:
    """The queries about accounts."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def by_name(self, safe: str) -> Account | None:
        """The account of this safe name."""
        found = await self.credentials(safe)
        return None if found is None else found.account

    async def by_id(self, account_id: int) -> Account | None:
        """The account of this id, unless it was erased."""
        row = await self._reader.fetch_one(_BY_ID, account_id=account_id)
        return None if row is None else Account(*row)

    async def is_known(self, account_id: int) -> bool:
        """Whether there is or was an account of this id."""
        return await self._reader.fetch_one(_IS_KNOWN, account_id=account_id) is not None

    async def credentials(self, safe: str) -> Credentials | None:
        """The account of this safe name with its password's hash."""
        row = await self._reader.fetch_one(_BY_NAME, safe=safe)
        return None if row is None else Credentials(Account(row[0], row[1]), row[2])

    async def next_id(self) -> int:
        """The id that the next person to register will have."""
        row = await self._reader.fetch_one(_LAST_ID)
        last = row[0] if row is not None else None
        return FIRST_PERSON_ID if last is None else max(FIRST_PERSON_ID, last + 1)
