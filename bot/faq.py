"""What FokaBot knows about the house: the topics of `!faq`."""

from __future__ import annotations

from collections.abc import Mapping

TOPICS: Mapping[str, str] = {
    "rules": "Be kind, stay on topic, do not spam, keep private things private. Operators may silence or ban those who "
    "do not. More: !faq swearing, !faq offend, !faq spam",
    "swearing": "A strong word now and then hurts nobody, but please do not make it a habit, and never aim it at "
    "somebody.",
    "offend": "Insults, threats and hate against people or groups have no place here. If you see some, do not answer: "
    "tell the operators by !report <user> <reason>.",
    "spam": "Say things once, in one message and in one channel. No advertising, no floods, no walls of symbols.",
    "report": "!report <user> <reason> tells the operators. Send it to me in a direct message if nobody else is to "
    "read it.",
    "silence": "Who is silenced can read, but not write until the time is over. The time is told with every try to "
    "write.",
    "names": "Spaces in usernames are written as _ in commands: !report Some_Body for Some Body.",
    "privacy": "What is sent here is kept in the server's log, also what is deleted later. Passwords and tokens are "
    "not.",
    "github": "The server is free software. Faults and wishes belong into the issues of its repository, whose address "
    "your operators know.",
    "discord": "Channels can be bridged to Discord. Whether there is a Discord server for this place, your operators "
    "know.",
}


def about(topic: str | None) -> str:
    """What there is to say about a topic (in lower case); the list of topics if there is nothing."""
    known = TOPICS.get(topic or "")
    if known is not None:
        return known
    listed = f"I know about: {', '.join(TOPICS)}. Ask by !faq <topic>."
    return listed if topic is None else f"I know nothing about that. {listed}"
