"""Serves until it is interrupted."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys

from tornado.netutil import bind_sockets
from tornado.web import Application

from tests.conformance.engine import Echo
from tests.fronts import make_server


def _application(suite: str) -> Application:
    if suite == "engineio":
        return Echo().application()
    from tests.conformance import chatter

    return Application(chatter.make_server().routes("/socket.io/"))


async def _serve(suite: str, port: int) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = make_server(_application(suite))
    server.add_sockets(bind_sockets(port))
    sys.stderr.write(f"the server for the {suite} suite listens on port {port}\n")
    await stopping.wait()
    server.stop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await server.close_all_connections()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument("suite", choices=["engineio", "socketio"])
    parser.add_argument("--port", type=int, default=3000)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.suite, arguments.port))


if __name__ == "__main__":
    main()
