"""Tokens: the digest of each account's newest one, unless that was revoked."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on, insert

from chat.commands import Account, Bearer, IssuedToken
from eventstore.projection import Change, Projection, Source, number, text
from eventstore.reader import Reader
from eventstore.statements import Statement
from eventstore.tables import NAME
from projections.accounts import accounts
from projections.schema import metadata, told

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("account_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    # Null when the newest generation is no token but a revocation.
    sa.Column("token_digest", NAME, unique=True),
)


def _issued(source: Source) -> sa.Insert:
    newest = (
        sa.select(
            number(source, "account_id").label("account_id"),
            number(source, "generation").label("generation"),
            text(source, "token_digest").label("token_digest"),
        )
        .where(told(source, "TokenIssued", "TokenRevoked"))
        # Of several tokens of one account in the range only the last one counts.
        .ext(distinct_on(number(source, "account_id")))
        .order_by(number(source, "account_id"), source.c.position.desc())
    )
    upsert = insert(tokens).from_select(["account_id", "generation", "token_digest"], newest)
    return upsert.on_conflict_do_update(
        index_elements=[tokens.c.account_id],
        set_={"generation": upsert.excluded.generation, "token_digest": upsert.excluded.token_digest},
    )


projection = Projection(
    name="tokens",
    tables=(tokens,),
    changes=(Change(frozenset({"TokenIssued", "TokenRevoked"}), _issued),),
)

_OF_ACCOUNT = Statement(
    sa.select(tokens.c.generation, tokens.c.token_digest).where(
        tokens.c.account_id == sa.bindparam("account_id", type_=sa.BigInteger)
    )
)
_BEARER = Statement(
    sa.select(accounts.c.account_id, accounts.c.username, tokens.c.generation)
    .join_from(tokens, accounts, tokens.c.account_id == accounts.c.account_id)
    .where(tokens.c.token_digest == sa.bindparam("digest", type_=sa.Text))
)


class Tokens:
    """The queries about tokens."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def of_account(self, account_id: int) -> IssuedToken | None:
        """The account's newest token, or its revocation."""
        row = await self._reader.fetch_one(_OF_ACCOUNT, account_id=account_id)
        return None if row is None else IssuedToken(*row)

    async def bearer(self, digest: str) -> Bearer | None:
        """Whose newest token has this digest."""
        row = await self._reader.fetch_one(_BEARER, digest=digest)
        return None if row is None else Bearer(Account(row[0], row[1]), row[2])
