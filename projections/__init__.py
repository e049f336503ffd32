"""The read models, one file each: its tables, how events change them, its queries."""

from __future__ import annotations

from pathlib import Path

from eventstore.projection import Projection
from projections import (
    accounts,
    bridges,
    channels,
    deliveries,
    discord_users,
    dms,
    messages,
    moderation,
    presence,
    tokens,
    verification,
)

# In the order in which a rebuild runs them; none reads another's tables while it is being filled.
ALL: tuple[Projection, ...] = (
    accounts.projection,
    tokens.projection,
    channels.projection,
    messages.projection,
    dms.projection,
    presence.projection,
    verification.projection,
    moderation.projection,
    deliveries.projection,
    bridges.projection,
    discord_users.projection,
)

MIGRATIONS = Path(__file__).parent / "migrations" / "versions"
