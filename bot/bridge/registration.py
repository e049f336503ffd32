"""Registering slash commands with Discord, where they stay: it is done only when they are others than stand there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import discord
import structlog
from discord import app_commands

from bot.bridge.away import AWAY, is_final
from eventstore.backoff import Backoff

# Seconds between two attempts: the first pause, and the longest.
_PAUSES = (1.0, 300.0)

_Tree = app_commands.CommandTree[discord.Client]
_log = structlog.get_logger(__name__)


async def register(tree: _Tree) -> None:
    """Registers a tree's slash commands for all guilds, after the client's login; goes on through outages.

    Where Discord refuses, it is said in the log, once, and prefix commands have to do.
    """
    backoff = Backoff(*_PAUSES)
    while True:
        await backoff.pause()
        try:
            if await _differs(tree):
                await tree.sync()
            return
        except AWAY as error:
            if is_final(error):
                _log.warning("Discord takes no slash commands, prefix commands must do", error=type(error).__name__)
                return
            _log.info("slash commands wait for Discord", error=type(error).__name__)


async def _differs(tree: _Tree) -> bool:
    # Raw, since discord.py reads the contexts of a command wrongly.
    there = await tree.client.http.get_global_commands(tree.client.application_id or 0)
    return {_shape(command) for command in there} != {_shape(command.to_dict(tree)) for command in tree.get_commands()}


def _shape(command: Mapping[str, Any]) -> tuple[Any, ...]:
    """What there is to a slash command, in the same form whether Discord has made it complete or not yet."""
    options = tuple(
        (option["name"], option["description"], option["type"], option.get("required", False))
        for option in command.get("options") or ()
    )
    permissions = command.get("default_member_permissions")
    return (
        command["name"],
        command["description"],
        options,
        tuple(sorted(command.get("contexts") or ())),
        None if permissions is None else int(permissions),
    )
