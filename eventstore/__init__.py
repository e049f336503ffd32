"""The log: append, read, follow, hash, migrate. Knows no chat."""
