"""The read models' tables."""
