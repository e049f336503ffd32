"""REST v10: each endpoint is a function from a `Call` to the JSON of its answer, or raises `Refusal`.

What the bot may do is decided here; `ROUTES` is the table of what there is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.standin.interactions import Interactions, check_definition, checked_content
from tests.standin.refusals import forbidden, malformed, no_such_route, unknown, wrong_method
from tests.standin.things import JSON, MANAGE_CHANNELS, SEND_MESSAGES, VIEW_CHANNEL, Channel, Message
from tests.standin.world import Draft, World

NONCE_LIMIT = 25
COMMANDS_LIMIT = 100


@dataclass(frozen=True, slots=True)
class Call:
    """A request: the ids in its path, its query, its JSON, the names of the files with it; and what it is about."""

    world: World
    interactions: Interactions
    gateway_url: str
    shards: int
    path: tuple[str, ...]
    query: Mapping[str, str]
    body: Any
    files: tuple[str, ...] = ()

    def id(self, index: int = 0) -> int:
        """An id of the path; what is no number is nobody's."""
        return int(self.path[index]) if self.path[index].isdecimal() else 0


Endpoint = Callable[[Call], JSON | list[JSON] | None]


# Gateway and self


def get_gateway(call: Call) -> JSON:
    return {"url": call.gateway_url}


def get_gateway_bot(call: Call) -> JSON:
    limit = {"total": 1000, "remaining": 999, "reset_after": 14_400_000, "max_concurrency": 1}
    return {"url": call.gateway_url, "shards": call.shards, "session_start_limit": limit}


def get_me(call: Call) -> JSON:
    return call.world.bot.json() | {"verified": True, "mfa_enabled": False, "locale": "en-US", "flags": 0}


def get_application(call: Call) -> JSON:
    bot = call.world.bot
    return {
        "id": str(bot.id),
        "name": bot.username,
        "icon": None,
        "description": "",
        "summary": "",
        "bot_public": False,
        "bot_require_code_grant": False,
        "owner": call.world.owner.json(),
        "bot": bot.json(),
        "team": None,
        "verify_key": "0" * 64,
        "flags": 1 << 18,
        "approximate_guild_count": len(call.world.guilds),
    }


def get_my_guilds(call: Call) -> list[JSON]:
    return [guild.json() | {"owner": False, "permissions": "0"} for guild in call.world.guilds.values()]


def open_dm(call: Call) -> JSON:
    person = call.world.users.get(int(call.body.get("recipient_id", 0)))
    if person is None or person.id == call.world.bot.id:
        raise unknown("User")
    return call.world.channel_json(call.world.dm(person))


# Users and guilds


def get_user(call: Call) -> JSON:
    if call.id() not in call.world.users:
        raise unknown("User")
    return call.world.users[call.id()].json()


def get_guild(call: Call) -> JSON:
    _check_guild(call)
    guild = call.world.guilds[call.id()]
    return guild.json() | {"roles": [role.json() for role in call.world.roles.values() if role.guild_id == guild.id]}


def get_guild_channels(call: Call) -> list[JSON]:
    _check_guild(call)
    channels = call.world.channels_of(call.world.guilds[call.id()])
    return [call.world.channel_json(channel) for channel in channels]


def get_member(call: Call) -> JSON:
    _check_guild(call)
    if call.id(1) not in call.world.users:
        raise unknown("Member")
    return call.world.member_json(call.world.users[call.id(1)])


def _check_guild(call: Call) -> None:
    if call.id() not in call.world.guilds:
        raise unknown("Guild")


# Channels and messages


def get_channel(call: Call) -> JSON:
    return call.world.channel_json(call.world.channel_for_bot(call.id()))


def delete_channel(call: Call) -> JSON:
    channel = call.world.channel_for_bot(call.id(), MANAGE_CHANNELS)
    shown = call.world.channel_json(channel)
    if channel.recipient is None:
        call.world.remove_channel(channel)
    return shown


def type_in(call: Call) -> None:
    call.world.channel_for_bot(call.id(), SEND_MESSAGES)


def get_messages(call: Call) -> list[JSON]:
    channel = call.world.channel_for_bot(call.id(), VIEW_CHANNEL)
    limit = int(call.query.get("limit", "50"))
    if not 1 <= limit <= 100:
        raise malformed("limit", "NUMBER_TYPE_MAX", "int value should be between 1 and 100.")
    page = _page(call.world.messages(channel), call.query, limit)
    return [message.json() for message in reversed(page)]


def _page(said: list[Message], query: Mapping[str, str], limit: int) -> list[Message]:
    if "around" in query:
        middle = int(query["around"])
        before = [message for message in said if message.id < middle][-(limit // 2) or len(said) :]
        return before + [message for message in said if message.id >= middle][: limit - limit // 2]
    if "after" in query:
        return [message for message in said if message.id > int(query["after"])][:limit]
    if "before" in query:
        said = [message for message in said if message.id < int(query["before"])]
    return said[-limit:]


def get_message(call: Call) -> JSON:
    return call.world.message_for_bot(call.id(), call.id(1)).json()


def post_message(call: Call) -> JSON:
    channel = call.world.channel_for_bot(call.id(), SEND_MESSAGES)
    body, nonce = call.body, call.body.get("nonce")
    content = checked_content(body | {"attachments": call.files})
    if nonce is not None and len(str(nonce)) > NONCE_LIMIT:
        raise malformed("nonce", "NONCE_TYPE_TOO_LONG", f"Nonce must be {NONCE_LIMIT} or fewer in length.")
    reply_to = _referenced(call, channel)
    if nonce is not None and body.get("enforce_nonce"):
        made = call.world.posted(call.world.bot, nonce)
        if made is not None:
            return made.json()
    draft = Draft(
        content,
        nonce=nonce,
        allowed_mentions=body.get("allowed_mentions"),
        attachments=call.files,
        embeds=body.get("embeds") or (),
        reply_to=reply_to,
        flags=body.get("flags", 0),
    )
    return call.world.post(channel, call.world.bot, draft).json()


def _referenced(call: Call, channel: Channel) -> Message | None:
    reference = call.body.get("message_reference")
    if reference is None:
        return None
    found = {message.id: message for message in call.world.messages(channel)}.get(int(reference["message_id"]))
    if found is None and reference.get("fail_if_not_exists", True):
        raise malformed("message_reference", "REPLIES_UNKNOWN_MESSAGE", "Unknown message")
    return found


def patch_message(call: Call) -> JSON:
    message = call.world.message_for_bot(call.id(), call.id(1))
    if message.author.id != call.world.bot.id:
        raise forbidden(50005)
    changes = {name: call.body[name] for name in ("flags", "allowed_mentions") if name in call.body}
    if call.body.get("content") is not None:
        changes["content"] = checked_content(call.body).strip()
    if "embeds" in call.body:
        changes["embeds"] = tuple(call.body["embeds"] or ())
    return call.world.edit(message, **changes).json()


def delete_message(call: Call) -> None:
    message = call.world.message_for_bot(call.id(), call.id(1))
    if message.author.id != call.world.bot.id:
        raise forbidden(50003 if message.channel.recipient else 50013)
    call.world.delete(message)


# Application commands


def get_commands(call: Call) -> list[JSON]:
    return [command for command in call.world.commands.values() if command.get("guild_id") == _command_guild(call)]


def put_commands(call: Call) -> list[JSON]:
    if len(call.body) > COMMANDS_LIMIT:
        raise malformed("commands", "BASE_TYPE_MAX_LENGTH", f"Must be {COMMANDS_LIMIT} or fewer in length.")
    for body in call.body:
        check_definition(body)
    names = {body["name"] for body in call.body}
    for old in get_commands(call):
        if old["name"] not in names:
            del call.world.commands[int(old["id"])]
    return [_register(call, body) for body in call.body]


def post_command(call: Call) -> JSON:
    check_definition(call.body)
    return _register(call, call.body)


def _register(call: Call, body: JSON) -> JSON:
    """A command of the same name keeps its id."""
    known = [int(command["id"]) for command in get_commands(call) if command["name"] == body["name"]]
    command_id = known[0] if known else call.world.next_id()
    command = {"type": 1, "options": [], "description": "", "default_member_permissions": None, "nsfw": False} | body
    command |= {"id": str(command_id), "application_id": call.path[0], "version": str(call.world.next_id())}
    if len(call.path) > 1:
        command |= {"guild_id": call.path[1]}
    call.world.commands[command_id] = command
    return command


def delete_global_command(call: Call) -> None:
    _delete_command(call, call.id(1))


def delete_guild_command(call: Call) -> None:
    _delete_command(call, call.id(2))


def _delete_command(call: Call, command_id: int) -> None:
    if command_id not in call.world.commands:
        raise unknown("Application Command")
    del call.world.commands[command_id]


def _command_guild(call: Call) -> str | None:
    if call.id() != call.world.bot.id:
        raise unknown("Application")
    return call.path[1] if len(call.path) > 1 else None


# Interactions


def answer_interaction(call: Call) -> JSON | None:
    shown = call.interactions.answer(call.id(), call.path[1], call.body)
    return shown if call.query.get("with_response") in ("1", "true") else None


def follow_up(call: Call) -> JSON:
    _check_webhook(call)
    return call.interactions.follow_up(call.path[1], call.body)


def get_answer(call: Call) -> JSON:
    _check_webhook(call)
    return call.interactions.show(call.path[1], call.path[2])


def patch_answer(call: Call) -> JSON:
    _check_webhook(call)
    return call.interactions.edit(call.path[1], call.path[2], call.body)


def delete_answer(call: Call) -> None:
    _check_webhook(call)
    call.interactions.delete(call.path[1], call.path[2])


def _check_webhook(call: Call) -> None:
    if call.id() != call.world.bot.id:
        raise unknown("Webhook")


class Route(NamedTuple):
    """An endpoint's place: a path in which each `{}` is an id, and whether the bot must show its token there."""

    method: str
    path: str
    endpoint: Endpoint
    needs_token: bool = True

    def match(self, path: str) -> tuple[str, ...] | None:
        """The ids in a path of this route, or None."""
        found = re.fullmatch(self.path.replace("{}", "([^/]+)"), path)
        return found.groups() if found else None


_MESSAGES = "/channels/{}/messages"
_GLOBAL_COMMANDS = "/applications/{}/commands"
_GUILD_COMMANDS = "/applications/{}/guilds/{}/commands"
_ANSWERS = "/webhooks/{}/{}/messages/{}"

ROUTES: tuple[Route, ...] = (
    Route("GET", "/gateway", get_gateway, needs_token=False),
    Route("GET", "/gateway/bot", get_gateway_bot),
    Route("GET", "/users/@me", get_me),
    Route("GET", "/users/@me/guilds", get_my_guilds),
    Route("POST", "/users/@me/channels", open_dm),
    Route("GET", "/users/{}", get_user),
    Route("GET", "/oauth2/applications/@me", get_application),
    Route("GET", "/applications/@me", get_application),
    Route("GET", "/guilds/{}", get_guild),
    Route("GET", "/guilds/{}/channels", get_guild_channels),
    Route("GET", "/guilds/{}/members/{}", get_member),
    Route("GET", "/channels/{}", get_channel),
    Route("DELETE", "/channels/{}", delete_channel),
    Route("POST", "/channels/{}/typing", type_in),
    Route("GET", _MESSAGES, get_messages),
    Route("POST", _MESSAGES, post_message),
    Route("GET", _MESSAGES + "/{}", get_message),
    Route("PATCH", _MESSAGES + "/{}", patch_message),
    Route("DELETE", _MESSAGES + "/{}", delete_message),
    Route("GET", _GLOBAL_COMMANDS, get_commands),
    Route("PUT", _GLOBAL_COMMANDS, put_commands),
    Route("POST", _GLOBAL_COMMANDS, post_command),
    Route("DELETE", _GLOBAL_COMMANDS + "/{}", delete_global_command),
    Route("GET", _GUILD_COMMANDS, get_commands),
    Route("PUT", _GUILD_COMMANDS, put_commands),
    Route("POST", _GUILD_COMMANDS, post_command),
    Route("DELETE", _GUILD_COMMANDS + "/{}", delete_guild_command),
    Route("POST", "/interactions/{}/{}/callback", answer_interaction, needs_token=False),
    Route("POST", "/webhooks/{}/{}", follow_up, needs_token=False),
    Route("GET", _ANSWERS, get_answer, needs_token=False),
    Route("PATCH", _ANSWERS, patch_answer, needs_token=False),
    Route("DELETE", _ANSWERS, delete_answer, needs_token=False),
)


def find_route(method: str, path: str) -> tuple[Route, tuple[str, ...]]:
    """The route of a request, and the ids in its path; raises `Refusal`."""
    at_path = [(route, ids) for route in ROUTES if (ids := route.match(path)) is not None]
    if not at_path:
        raise no_such_route()
    for route, ids in at_path:
        if route.method == method:
            return route, ids
    raise wrong_method()
