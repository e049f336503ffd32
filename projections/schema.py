"""What the tables of all read models share."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import TIMESTAMP

from eventstore.tables import NAMING

metadata = sa.MetaData(naming_convention=NAMING)

MOMENT = TIMESTAMP(timezone=True)
