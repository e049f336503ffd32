"""Presence: the connections that stand open, and so who is online."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on, insert

from chat.connections import OpenConnection
from chat.names import BOT_ID
from eventstore.projection import Change, Projection, Source, number, of_type, text
from eventstore.reader import Reader
from eventstore.statements import Statement
from eventstore.tables import NAME
from projections.accounts import accounts
from projections.schema import metadata, named_by, told

connections = sa.Table(
    "connections",
    metadata,
    sa.Column("connection_id", NAME, primary_key=True),
    sa.Column("account_id", sa.BigInteger, nullable=False),
    sa.Column("node_id", NAME, nullable=False),
    # Where it was opened: the place in the log, and the version of its stream, at which it can be closed.
    sa.Column("opened", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Index(None, "account_id"),
    sa.Index(None, "node_id"),
)

_TYPES = frozenset({"ConnectionOpened", "ConnectionClosed"})
_COLUMNS = ["connection_id", "account_id", "node_id", "opened", "version"]


def _last(source: Source) -> sa.Subquery:
    """What the source says last of each connection: opened and closed in one range, only the end of it counts."""
    return (
        sa.select(
            named_by(source, "connection-").label("connection_id"),
            number(source, "account_id").label("account_id"),
            text(source, "node_id").label("node_id"),
            source.c.position.label("opened"),
            source.c.version,
            source.c.type,
        )
        .where(told(source, *sorted(_TYPES)))
        .ext(distinct_on(source.c.stream))
        .order_by(source.c.stream, source.c.position.desc())
        .subquery("last")
    )


def _opened(source: Source) -> sa.Insert:
    last = _last(source)
    rows = sa.select(*(last.c[name] for name in _COLUMNS)).where(of_type(last, "ConnectionOpened"))
    upsert = insert(connections).from_select(_COLUMNS, rows)
    # A connection may be opened anew, by its account at another node, before its end there was noticed.
    return upsert.on_conflict_do_update(
        index_elements=[connections.c.connection_id], set_={name: upsert.excluded[name] for name in _COLUMNS[1:]}
    )


def _closed(source: Source) -> sa.Delete:
    last = _last(source)
    closed = sa.select(last.c.connection_id).where(of_type(last, "ConnectionClosed"))
    return sa.delete(connections).where(connections.c.connection_id.in_(closed))


projection = Projection(
    name="presence",
    tables=(connections,),
    # Both for both types: a batch of messages has openings and closings along with it in any mixture, and the log
    # compiles and keeps a statement for each mixture of changes.
    changes=(Change(_TYPES, _opened), Change(_TYPES, _closed)),
)

_OF_ACCOUNT = Statement(
    sa.select(connections.c.connection_id)
    .where(connections.c.account_id == sa.bindparam("account_id", type_=sa.BigInteger))
    .limit(sa.literal_column("1"))
)
_ACCOUNTS = Statement(sa.select(sa.func.count(connections.c.account_id.distinct())))
_OF_NODE = Statement(
    sa.select(connections.c.connection_id, connections.c.account_id, connections.c.version)
    .where(connections.c.node_id == sa.bindparam("node_id", type_=sa.Text))
    .order_by(connections.c.opened)
)
_NODES = Statement(sa.select(connections.c.node_id).distinct().order_by(connections.c.node_id))
_ONLINE = Statement(
    sa.select(
        connections.c.account_id,
        accounts.c.username,
        sa.func.count(),
        sa.func.min(connections.c.opened),
    )
    .join_from(connections, accounts, accounts.c.account_id == connections.c.account_id, isouter=True)
    .group_by(connections.c.account_id, accounts.c.username)
    .order_by(sa.func.min(connections.c.opened))
)
_BY_NODE = Statement(
    sa.select(connections.c.node_id, sa.func.count()).group_by(connections.c.node_id).order_by(connections.c.node_id)
)


class Online(msgspec.Struct, frozen=True):
    """An account that is online: how many connections it has open, and where in the log the oldest was opened."""

    account_id: int
    username: str | None
    connections: int
    since: int


class Presence:
    """The queries about who is online. The bot always is, without a connection."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def is_online(self, account_id: int) -> bool:
        """Whether the account has a connection open, at any node."""
        return account_id == BOT_ID or await self._reader.fetch_one(_OF_ACCOUNT, account_id=account_id) is not None

    async def online_accounts(self) -> int:
        """How many accounts are online, however many connections they have; the bot is one of them."""
        [(count,)] = await self._reader.fetch(_ACCOUNTS)
        return int(count) + 1

    async def open_of_node(self, node_id: str) -> list[OpenConnection]:
        """The connections that a node has open, in the order in which it opened them."""
        return [OpenConnection(*row) for row in await self._reader.fetch(_OF_NODE, node_id=node_id)]

    async def nodes(self) -> list[str]:
        """The nodes that have connections open."""
        return [node_id for (node_id,) in await self._reader.fetch(_NODES)]

    async def online(self) -> list[Online]:
        """The accounts that have connections open, who came first before the others; without the bot."""
        return [Online(*row) for row in await self._reader.fetch(_ONLINE)]

    async def open_by_node(self) -> dict[str, int]:
        """How many connections each node has open, of those that have any."""
        return {node_id: int(count) for node_id, count in await self._reader.fetch(_BY_NODE)}
