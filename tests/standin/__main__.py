"""Serves until it is interrupted; prints what a bot needs, and what is said. What is typed, somebody says."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from tests.standin.server import TOKEN, Discord
from tests.standin.things import Channel, User
from tests.standin.world import Dispatch


class Told(Discord):
    """Writes down what is said."""

    def _dispatch(self, event: Dispatch) -> None:
        super()._dispatch(event)
        if event.name.startswith("MESSAGE_"):
            author = event.data.get("author", {}).get("username", "")
            write(f"{event.name} {event.data.get('id', '')} {author}: {event.data.get('content', '')}")


def write(line: str) -> None:
    """A line for who tries things."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _say_next(discord: Discord, person: User, channel: Channel) -> None:
    line = sys.stdin.readline()
    if not line:
        asyncio.get_running_loop().remove_reader(sys.stdin)
    elif line.strip():
        discord.says(person, channel, line)


async def _serve(port: int, token: str) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with Told(token, port=port) as discord:
        channel = discord.text_channel(discord.guild("Stand-in"), "general")
        person = discord.person("somebody", "Somebody")
        write(f"API {discord.api}\ntoken {token}\nchannel {channel.id} #{channel.name}\nperson {person.id}")
        if sys.stdin.isatty():
            loop.add_reader(sys.stdin, _say_next, discord, person, channel)
        await stopping.wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.standin", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--token", default=TOKEN)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.port, arguments.token))


if __name__ == "__main__":
    main()
