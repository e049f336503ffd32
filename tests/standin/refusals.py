"""What Discord answers when it does not do what it is asked (API reference, "JSON Error Codes")."""

from __future__ import annotations

from tests.standin.things import JSON

_UNKNOWN = {
    "Application": 10002,
    "Channel": 10003,
    "Guild": 10004,
    "Member": 10007,
    "Message": 10008,
    "User": 10013,
    "Webhook": 10015,
    "Interaction": 10062,
    "Application Command": 10063,
}
_FORBIDDEN = {
    50001: "Missing Access",
    50003: "Cannot execute action on a DM channel",
    50005: "Cannot edit a message authored by another user",
    50007: "Cannot send messages to this user",
    50013: "Missing Permissions",
}


class Refusal(Exception):
    """An answer with an HTTP status that is none of success: `body` is its JSON."""

    def __init__(self, status: int, code: int, text: str, errors: JSON | None = None) -> None:
        super().__init__(f"{status} {code} {text}")
        self.status = status
        self.body: JSON = {"message": text, "code": code} | ({"errors": errors} if errors else {})


def unauthorized() -> Refusal:
    """The token is not the bot's."""
    return Refusal(401, 0, "401: Unauthorized")


def no_such_route() -> Refusal:
    """Nothing is at this path."""
    return Refusal(404, 0, "404: Not Found")


def wrong_method() -> Refusal:
    """Something is at this path, but not by this method."""
    return Refusal(405, 0, "405: Method Not Allowed")


def unknown(what: str) -> Refusal:
    """There is no such thing, or no longer."""
    return Refusal(404, _UNKNOWN[what], f"Unknown {what}")


def forbidden(code: int) -> Refusal:
    """The bot may not, for the reason that the code tells."""
    return Refusal(403, code, _FORBIDDEN[code])


def empty_message() -> Refusal:
    """A message of nothing."""
    return Refusal(400, 50006, "Cannot send an empty message")


def already_acknowledged() -> Refusal:
    """An interaction is answered once."""
    return Refusal(400, 40060, "Interaction has already been acknowledged.")


def malformed(field: str, code: str, text: str) -> Refusal:
    """A field of the body is not what it must be."""
    return Refusal(400, 50035, "Invalid Form Body", {field: {"_errors": [{"code": code, "message": text}]}})
