"""HTTP in, JSON out: adapters that parse, call a command or a query, and render."""
