"""A projection of messages as users of the `eventsourcing` library write it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import DomainEvent
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresDatastore, PostgresTrackingRecorder
from eventsourcing.projection import Projection
from psycopg.sql import SQL, Identifier

TABLE = "library_messages"


class Chat(Application[UUID]):
    """The application whose events are projected."""


class MessageSent(DomainEvent):
    """A message in a channel, in the library's terms."""

    channel_id: int
    sender_id: int
    text: str


class Messages(PostgresTrackingRecorder):
    """The view: a table of messages, and how far it has come."""

    def __init__(self, datastore: PostgresDatastore, **kwargs: Any) -> None:
        super().__init__(datastore, **kwargs)
        table = Identifier(self.datastore.schema), Identifier(TABLE)
        self.sql_create_statements.append(
            SQL(
                "CREATE TABLE IF NOT EXISTS {}.{} (message_id bigint PRIMARY KEY, channel_id bigint NOT NULL, "
                "sender_id bigint NOT NULL, text text NOT NULL)"
            ).format(*table)
        )
        self.sql_create_statements.append(
            SQL("CREATE INDEX IF NOT EXISTS {0} ON {1}.{2} (channel_id, message_id)").format(
                Identifier(f"{TABLE}_channel"), *table
            )
        )
        self.sql_create_statements.append(
            SQL("CREATE INDEX IF NOT EXISTS {0} ON {1}.{2} (sender_id, message_id)").format(
                Identifier(f"{TABLE}_sender"), *table
            )
        )
        self._insert = SQL("INSERT INTO {}.{} VALUES (%s, %s, %s, %s)").format(*table)

    def add(self, event: MessageSent, tracking: Tracking) -> None:
        """Keeps a message and its position in one transaction."""
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            row = (tracking.notification_id, event.channel_id, event.sender_id, event.text)
            cursor.execute(self._insert, row, prepare=True)


class MessagesProjection(Projection[Messages]):
    """What events do to the view."""

    def process_event(self, domain_event: object, tracking: Tracking) -> None:
        """Keeps messages; there is nothing else in this log."""
        if isinstance(domain_event, MessageSent):
            self.view.add(domain_event, tracking)
