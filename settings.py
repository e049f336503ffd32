"""Every setting of Minutebook, in one table: the fields of `Settings`.

The table makes the flags (`--data-dir`), the environment's names (`MINUTEBOOK_DATA_DIR`), the help texts and the
README's table; a test holds them together. A flag wins over the environment, the environment over the default.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict


class BadSetting(ValueError):
    """A setting has a value that it cannot have; the message is one line that says which and why."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")


Parse = Callable[[str], Any]


def whole(least: int, most: int) -> Parse:
    """A whole number within bounds."""

    def parse(text: str) -> int:
        if not text.strip().isdecimal() or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}, not {text!r}")
        return int(text)

    return parse


def choice(*names: str) -> Parse:
    """One of some words."""

    def parse(text: str) -> str:
        if text.lower() not in names:
            raise ValueError(f"must be one of {', '.join(names)}, not {text!r}")
        return text.lower()

    return parse


def _text(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _networks(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(ip_network(name, strict=False)) for name in _names(text))
    except ValueError as error:
        raise ValueError(f"must be addresses or networks, such as 10.0.0.0/8: {error}") from None


def _path(text: str) -> Path:
    try:
        return Path(_text(text)).expanduser()
    except RuntimeError:
        raise ValueError(f"begins with the home of nobody here: {text!r}") from None


def _database_url(text: str) -> str:
    try:
        conninfo_to_dict(text)
    except ProgrammingError:
        # psycopg's own message would repeat what may be a password.
        raise ValueError("is not a connection string as Postgres takes it (postgresql://… or key=value …)") from None
    return _text(text)


def _origin(text: str) -> str:
    if not text or "+" in text or any(character.isspace() or character < " " for character in text):
        raise ValueError("must be a name without white space and without +, such as example.com/minutes")
    return text


def _as_text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value.absolute() if isinstance(value, Path) else value)


def _http_url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", text):
        raise ValueError("must be a URL such as https://discord.com/api/v10")
    return text.rstrip("/")


def _event_name(text: str) -> str:
    if text in ("connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"):
        raise ValueError(f"must not be {text}, which is an event of Socket.IO itself")
    return _text(text)


def _secret(text: str) -> str:
    if len(text) < 16:
        raise ValueError("must be at least 16 characters long")
    return text


def _field(default: object, help_text: str, parse: Parse, *, secret: bool = False) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text, "parse": parse, "secret": secret})


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of one process, each with its default."""

    port: int = _field(8080, "TCP port to listen on; 0 picks a free one", whole(0, 65535))
    address: str = _field("127.0.0.1", "address to listen on; 0.0.0.0 for all", _text)
    http_parser: str = _field(
        "httptools",
        "what parses HTTP: httptools, which is fast, or tornado, its own parser in Python",
        choice("httptools", "tornado"),
    )
    workers: int = _field(1, "processes that serve the port together; more than one need Linux", whole(1, 64))
    tls_certificate: Path | None = _field(
        None, "certificate file (PEM, with those that lead to its root) to serve HTTPS by in place of HTTP", _path
    )
    tls_key: Path | None = _field(None, "file of the certificate's key, if it is not in the same file", _path)
    trusted_proxies: tuple[str, ...] = _field(
        (),
        "addresses and networks, separated by commas, of proxies whose X-Forwarded-For and X-Forwarded-Proto are "
        "believed",
        _networks,
    )
    data_dir: Path = _field(Path("minutebook-data"), "folder for the server's secret and the embedded Postgres", _path)
    database_url: str | None = _field(
        None, "PostgreSQL 15 or later to use in place of the embedded one", _database_url, secret=True
    )
    secret: str | None = _field(
        None,
        "what tokens and the names' streams are derived from, the same for the life of a log; "
        "by default made once and kept in data_dir",
        _secret,
        secret=True,
    )
    ci_key: str | None = _field(
        None, "key of the Bancho API's internal endpoints; without one they refuse", _text, secret=True
    )
    operators: tuple[str, ...] = _field(
        (), "usernames, separated by commas, that may write announcements and moderate", _names
    )
    bcrypt_cost: int = _field(12, "cost of password hashes, each step doubles it", whole(4, 20))
    rate_limit: int = _field(50, "messages that an account may send in 10 s; 0 for no limit", whole(0, 1_000_000))
    login_limit: int = _field(
        10, "failed logins in a minute, for each address and for each name; 0 for no limit", whole(0, 1_000_000)
    )
    channel_event: str = _field(
        "new_message", "what listeners are told of a channel's message by (a Socket.IO event)", _event_name
    )
    recovery_window: int = _field(
        86_400, "seconds in which a listener that was away can go on where it was", whole(0, 31_536_000)
    )
    audit_key: str | None = _field(
        None, "key of the auditors' stream, namespace /log; without one it refuses", _text, secret=True
    )
    origin: str = _field(
        "minutebook.local/log", "name of this log in its checkpoints and proofs, best a URL of yours", _origin
    )
    checkpoint_interval: int = _field(
        10, "seconds from one signed checkpoint of the log to the next, while it grows", whole(1, 86_400)
    )
    log_key: str | None = _field(
        None,
        "key that signs the checkpoints (PRIVATE+KEY+…), the same at all servers of a log; "
        "by default made once and kept in data_dir",
        _text,
        secret=True,
    )
    discord_token: str | None = _field(
        None, "token of the Discord bot; with one, this process bridges to Discord", _text, secret=True
    )
    discord_channel: int | None = _field(
        None, "id of the Discord channel that messages without another destination go to", whole(1, 2**63 - 1)
    )
    discord_api: str = _field("https://discord.com/api/v10", "base URL of Discord's REST interface", _http_url)
    discord_give_up: int = _field(
        86_400, "seconds after which a message that Discord does not take has failed", whole(1, 31_536_000)
    )
    cors_origin: str = _field(
        "*",
        "origin whose web pages may connect by Socket.IO; * for all (connections need a token, not a cookie)",
        _text,
    )
    ping_interval: int = _field(25, "seconds between the heartbeats of a connection", whole(1, 3600))
    ping_timeout: int = _field(20, "seconds in which a client must answer a heartbeat", whole(1, 3600))
    max_payload: int = _field(
        1_000_000, "bytes that a message of a Socket.IO client may have", whole(1000, 100_000_000)
    )
    max_backlog: int = _field(
        1 << 20, "bytes that may wait for a client that does not read; more ends its connection", whole(1000, 1 << 30)
    )
    log_level: str = _field("info", "debug, info, warning or error", choice("debug", "info", "warning", "error"))

    @classmethod
    def parse(cls, texts: Mapping[str, str]) -> Settings:
        """The settings that are given as texts, the others by default; raises `BadSetting`."""
        values: dict[str, Any] = {}
        for setting in table():
            if setting.name in texts:
                try:
                    values[setting.name] = setting.parse(texts[setting.name])
                except ValueError as error:
                    raise BadSetting(setting.name, str(error)) from None
        return cls(**values)

    def texts(self) -> dict[str, str]:
        """The settings as texts of which `parse` makes them again, in whatever folder; None is left out."""
        values = ((setting.name, getattr(self, setting.name)) for setting in table())
        return {name: _as_text(value) for name, value in values if value is not None}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A row of the table: `secret` ones are never shown."""

    name: str
    help: str
    parse: Parse
    default: object
    secret: bool

    @property
    def flag(self) -> str:
        """The command line's name for it."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment's name for it."""
        return "MINUTEBOOK_" + self.name.upper()

    @property
    def default_text(self) -> str:
        """The default as one would write it."""
        if isinstance(self.default, tuple) or self.default is None:
            return "none"
        return str(self.default)


def table() -> list[Setting]:
    """All settings in the order in which they are shown."""
    return [
        Setting(f.name, f.metadata["help"], f.metadata["parse"], f.default, f.metadata["secret"])
        for f in dataclasses.fields(Settings)
    ]
