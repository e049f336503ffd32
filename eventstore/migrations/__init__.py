"""Alembic's environment for all migrations of the house: the log's own are in `versions`."""
