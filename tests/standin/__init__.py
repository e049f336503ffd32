"""A Discord for tests: enough of REST v10 and of gateway v10 that an unchanged discord.py client is at home in it.

Tests use `tests.standin.server.Discord`, which shows the whole; `python -m tests.standin` runs one alone.
"""
