"""Slash commands: what people invoke, and what the bot answers (API reference, "Receiving and Responding")."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.standin.refusals import Refusal, already_acknowledged, empty_message, malformed, unknown
from tests.standin.things import COMMAND, EPHEMERAL, JSON, LOADING, ORDINARY, Channel, Message, User
from tests.standin.world import Dispatch, Draft, Intents, World

# "Interaction Callback Type".
MESSAGE, DEFERRED = 4, 5
# "Application Command Option Type".
SUBCOMMAND, GROUP, USER, CHANNEL = 1, 2, 6, 7
CONTENT_LIMIT = 2000


@dataclass(frozen=True, slots=True)
class Reply:
    """What the bot answered; `deferred` if it first asked for time. Others cannot see `ephemeral` ones."""

    text: str
    ephemeral: bool
    deferred: bool


@dataclass(eq=False)
class Interaction:
    """A command that somebody has invoked. `shown` is the bot's answer, also if only that person can see it."""

    id: int
    token: str
    person: User
    channel: Channel
    expires_at: float
    reply: asyncio.Future[Reply]
    deferred: bool = False
    flags: int = 0
    shown: Message | None = None
    followups: list[Message] = field(default_factory=list)

    @property
    def ephemeral(self) -> bool:
        """Whether only who invoked it sees the answer."""
        return bool(self.flags & EPHEMERAL)


class Interactions:
    """All interactions. One that is not answered within `seconds` is lost, as people's are."""

    def __init__(self, world: World, announce: Callable[[Dispatch], None], seconds: float) -> None:
        self._world = world
        self._announce = announce
        self._seconds = seconds
        self._by_token: dict[str, Interaction] = {}

    def begin(self, person: User, channel: Channel, command: str, options: Mapping[str, Any]) -> Interaction:
        """Somebody invokes a command: its name, or the names of a group and a command in it, with a space between.

        Raises `LookupError` if the bot has registered no such command or option.
        """
        world = self._world
        names = command.split()
        definition = self._definition(names[0], channel)
        # Made first: an option that does not exist is the caller's mistake, and no interaction.
        data = _CommandData(world, channel).build(definition, names[1:], options)
        interaction = Interaction(
            id=world.next_id(),
            token=secrets.token_urlsafe(32),
            person=person,
            channel=channel,
            expires_at=world.now() + self._seconds,
            reply=asyncio.get_running_loop().create_future(),
        )
        self._by_token[interaction.token] = interaction
        event = self._event(interaction, data)
        self._announce(Dispatch("INTERACTION_CREATE", event, Intents.NONE, channel.guild_id))
        return interaction

    def _definition(self, name: str, channel: Channel) -> JSON:
        for command in self._world.commands.values():
            here = command.get("guild_id") in (None, str(channel.guild_id))
            if command["name"] == name and here and command["type"] == 1:
                return command
        raise LookupError(f"the bot has no command {name!r} here")

    def _event(self, interaction: Interaction, data: JSON) -> JSON:
        world, channel, person = self._world, interaction.channel, interaction.person
        event = {
            "id": str(interaction.id),
            "application_id": str(world.bot.id),
            "type": 2,
            "token": interaction.token,
            "version": 1,
            "data": data,
            "channel_id": str(channel.id),
            "channel": world.channel_json(channel),
            "app_permissions": str(ORDINARY & ~world.denied.get(channel.id, 0)),
            "locale": "en-US",
            "entitlements": [],
            "authorizing_integration_owners": {"0": str(channel.guild_id or 0)},
            "attachment_size_limit": 10 << 20,
        }
        if channel.guild_id is None:
            return event | {"context": 1, "user": person.json()}
        guild = {"id": str(channel.guild_id), "locale": "en-US", "features": []}
        member = world.member_json(person) | {"permissions": str(person.permissions)}
        return event | {
            "context": 0,
            "guild_id": str(channel.guild_id),
            "guild": guild,
            "guild_locale": "en-US",
            "member": member,
        }

    # What the bot does

    def answer(self, interaction_id: int, token: str, body: JSON) -> JSON:
        """The bot's first answer; what it gets if it asks for it. Raises `Refusal`."""
        interaction = self._find(token)
        late = interaction.shown is None and self._world.now() > interaction.expires_at
        if interaction.id != interaction_id or late:
            raise unknown("Interaction")
        if interaction.shown is not None:
            raise already_acknowledged()
        kind, data = body["type"], body.get("data") or {}
        if kind not in (MESSAGE, DEFERRED):
            raise malformed("type", "BASE_TYPE_CHOICES", f"The stand-in knows no answer of type {kind}.")
        interaction.deferred = kind == DEFERRED
        interaction.flags = data.get("flags", 0)
        interaction.shown = self._say(interaction, data)
        if kind == MESSAGE:
            self._settle(interaction, interaction.shown)
        return self._callback(interaction, kind, interaction.shown)

    def _callback(self, interaction: Interaction, kind: int, shown: Message) -> JSON:
        about = {
            "id": str(interaction.id),
            "type": 2,
            "response_message_id": str(shown.id),
            "response_message_loading": kind == DEFERRED,
            "response_message_ephemeral": interaction.ephemeral,
        }
        return {"interaction": about, "resource": {"type": kind, "message": shown.json()}}

    def follow_up(self, token: str, body: JSON) -> JSON:
        """A further message of the bot; after a deferral the first one is the answer. Raises `Refusal`."""
        interaction = self._answered(token)
        if not interaction.reply.done():
            return self.edit(token, "@original", body)
        message = self._say(interaction, body, body.get("flags", 0))
        interaction.followups.append(message)
        return message.json()

    def show(self, token: str, message_id: str) -> JSON:
        """One of the bot's messages to an interaction. Raises `Refusal`."""
        return self._message(self._answered(token), message_id).json()

    def edit(self, token: str, message_id: str, body: JSON) -> JSON:
        """Changes one of the bot's messages; the answer of a deferred one comes like this. Raises `Refusal`."""
        interaction = self._answered(token)
        message = self._message(interaction, message_id)
        content = checked_content(body) if body.get("content") is not None else message.content
        embeds = tuple(body.get("embeds") or message.embeds)
        edited = self._world.edit(message, content=content, embeds=embeds, flags=message.flags & ~LOADING)
        self._settle(interaction, edited)
        return edited.json()

    def delete(self, token: str, message_id: str) -> None:
        """Takes one of the bot's messages back. Raises `Refusal`."""
        self._world.delete(self._message(self._answered(token), message_id))

    def _find(self, token: str) -> Interaction:
        try:
            return self._by_token[token]
        except KeyError:
            raise unknown("Webhook") from None

    def _answered(self, token: str) -> Interaction:
        interaction = self._find(token)
        if interaction.shown is None:
            raise unknown("Webhook")
        return interaction

    def _message(self, interaction: Interaction, message_id: str) -> Message:
        original = interaction.shown
        for message in (original, *interaction.followups):
            named = message is not None and str(message.id) == message_id
            if message is not None and (named or (message_id == "@original" and message is original)):
                current = self._world.message(message.id)
                if not current.deleted:
                    return current
        raise unknown("Message")

    def _say(self, interaction: Interaction, data: JSON, flags: int | None = None) -> Message:
        loading = flags is None and interaction.deferred
        chosen = interaction.flags if flags is None else flags
        draft = Draft(
            "" if loading else checked_content(data),
            allowed_mentions=data.get("allowed_mentions"),
            embeds=data.get("embeds") or (),
            flags=chosen | (LOADING if loading else 0),
            kind=COMMAND,
        )
        return self._world.post(interaction.channel, self._world.bot, draft)

    def _settle(self, interaction: Interaction, message: Message) -> None:
        if not interaction.reply.done():
            interaction.reply.set_result(Reply(message.content, interaction.ephemeral, interaction.deferred))


def checked_content(body: JSON) -> str:
    """The text of a message that the bot sends; raises `Refusal` if it is too long, or if there is nothing to send."""
    content = str(body.get("content") or "")
    if len(content) > CONTENT_LIMIT:
        raise malformed("content", "BASE_TYPE_MAX_LENGTH", f"Must be {CONTENT_LIMIT} or fewer in length.")
    if not content.strip() and not body.get("embeds") and not body.get("attachments"):
        raise empty_message()
    return content


class _CommandData:
    """Builds what an interaction says of its command: the options with their types, and what they name."""

    def __init__(self, world: World, channel: Channel) -> None:
        self._world = world
        self._channel = channel
        self._resolved: JSON = {}

    def build(self, definition: JSON, path: list[str], options: Mapping[str, Any]) -> JSON:
        data = {"id": definition["id"], "name": definition["name"], "type": 1}
        data |= {"options": self._nested(definition, path, options)}
        if definition.get("guild_id"):
            data |= {"guild_id": definition["guild_id"]}
        return data | ({"resolved": self._resolved} if self._resolved else {})

    def _nested(self, definition: JSON, path: list[str], options: Mapping[str, Any]) -> list[JSON]:
        if not path:
            return [self._option(_named(definition, name), value) for name, value in options.items()]
        inner = _named(definition, path[0])
        return [{"name": path[0], "type": inner["type"], "options": self._nested(inner, path[1:], options)}]

    def _option(self, definition: JSON, value: Any) -> JSON:
        if isinstance(value, User):
            self._resolve("users", value.id, value.json())
            self._resolve("members", value.id, value.member() | {"permissions": str(value.permissions)})
        elif isinstance(value, Channel):
            shown = self._world.channel_json(value) | {"permissions": str(ORDINARY)}
            self._resolve("channels", value.id, shown)
        given = str(value.id) if isinstance(value, User | Channel) else value
        return {"name": definition["name"], "type": definition["type"], "value": given}

    def _resolve(self, kind: str, thing_id: int, shown: JSON) -> None:
        self._resolved.setdefault(kind, {})[str(thing_id)] = shown


def _named(definition: JSON, name: str) -> JSON:
    for option in definition.get("options") or ():
        if option["name"] == name:
            found: JSON = option
            return found
    raise LookupError(f"{definition['name']!r} has no {name!r}")


def check_definition(body: JSON) -> None:
    """Raises `Refusal` for a command that Discord would not register."""
    name, description = str(body.get("name", "")), str(body.get("description", ""))
    if not 1 <= len(name) <= 32 or name != name.lower() or " " in name:
        raise malformed("name", "APPLICATION_COMMAND_INVALID_NAME", "Command name is invalid")
    if body.get("type", 1) == 1 and not 1 <= len(description) <= 100:
        raise _bad_description()


def _bad_description() -> Refusal:
    return malformed("description", "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 100 in length.")
