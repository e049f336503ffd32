"""The HTTP around REST: tokens, faults, holds, limits, and the record of what was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Protocol

from tornado.web import RequestHandler

from tests.standin.faults import Bucket, Fault, Hold, Limit, Plan, Request, too_many
from tests.standin.interactions import Interactions
from tests.standin.refusals import Refusal, malformed, unauthorized
from tests.standin.rest import Call, Route, find_route
from tests.standin.things import JSON
from tests.standin.world import World

Answer = tuple[int, Any, Mapping[str, str]]  # status, body, headers
# What clients are told where there is no limit: one that they never reach.
_ROOMY = Limit(1000, 1.0)


class Place(Protocol):
    """What requests are about; `Discord` is one."""

    token: str
    world: World
    interactions: Interactions
    shards: int
    message_limit: Limit | None
    requests: list[Request]
    plans: list[Plan]
    holds: list[Hold]
    buckets: dict[int, Bucket]
    running: set[asyncio.Task[Any]]

    @property
    def gateway_url(self) -> str:
        """The gateway, without its query."""


class Rest(RequestHandler):
    """Every request of the API."""

    def initialize(self, discord: Place) -> None:
        """Called by Tornado with what the route says."""
        self._discord = discord
        self._gone = False

    def on_connection_close(self) -> None:
        """The client has not waited."""
        self._gone = True

    async def _serve(self, path: str) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._discord.running.add(task)
            task.add_done_callback(self._discord.running.discard)
        request = Request(str(self.request.method), path, body=self._body())
        await self._wait(request, applied=False)
        if self._gone:
            return
        answer = self._answer(request)
        self._discord.requests.append(request._replace(status=answer[0] if answer else None))
        await self._wait(request, applied=True)
        self._send(answer)

    get = post = put = patch = delete = _serve

    async def _wait(self, request: Request, applied: bool) -> None:
        for hold in [hold for hold in self._discord.holds if hold.applied == applied]:
            await hold.pass_by(request)

    def _answer(self, request: Request) -> Answer | None:
        """What the request is answered with; None if its connection is to be cut."""
        fault = self._fault(request)
        if fault is None:
            return self._done(request)
        if fault.apply:
            self._done(request)
        return None if fault.status is None else (fault.status, *fault.answer())

    def _fault(self, request: Request) -> Fault | None:
        for plan in self._discord.plans:
            if plan.times > 0 and plan.only(request):
                plan.times -= 1
                return plan.fault
        return None

    def _done(self, request: Request) -> Answer:
        try:
            route, ids = find_route(request.method, request.path)
            if route.needs_token and self.request.headers.get("Authorization") != f"Bot {self._discord.token}":
                raise unauthorized()
            return self._within_limits(route, ids, request)
        except Refusal as refusal:
            return refusal.status, refusal.body, {}

    def _within_limits(self, route: Route, ids: tuple[str, ...], request: Request) -> Answer:
        bucket, now = self._bucket(route, ids), asyncio.get_running_loop().time()
        within = bucket.take(now)
        headers = bucket.headers(f"{route.method} {route.path}", now, self._discord.world.now())
        if not within:
            body, more = too_many(max(0.0, bucket.resets_at - now), "user")
            return 429, body, headers | more
        try:
            shown = route.endpoint(self._call(ids, request))
        except Refusal as refusal:
            return refusal.status, refusal.body, headers
        return 204 if shown is None else 200, shown, headers

    def _bucket(self, route: Route, ids: tuple[str, ...]) -> Bucket:
        limit = self._discord.message_limit
        if limit is None or (route.method, route.path) != ("POST", "/channels/{}/messages") or not ids[0].isdecimal():
            return Bucket(_ROOMY)
        return self._discord.buckets.setdefault(int(ids[0]), Bucket(limit))

    def _call(self, ids: tuple[str, ...], request: Request) -> Call:
        if request.body is _BROKEN:
            raise malformed("_", "JSON_INVALID", "The request body contains invalid JSON.")
        place = self._discord
        return Call(
            world=place.world,
            interactions=place.interactions,
            gateway_url=place.gateway_url,
            shards=place.shards,
            path=ids,
            query={name: self.get_query_argument(name) for name in self.request.query_arguments},
            body=request.body,
            files=tuple(str(file.filename) for files in self.request.files.values() for file in files),
        )

    def _body(self) -> Any:
        """The JSON of the body, or of the part of a form that has it; {} if there is none."""
        text = self.get_body_argument("payload_json", None) or self.request.body
        try:
            return json.loads(text) if text else {}
        except ValueError:
            return _BROKEN

    def _send(self, answer: Answer | None) -> None:
        if self._gone:
            return
        if answer is None:
            self.detach().close()
            return
        status, body, headers = answer
        self.set_status(status)
        # Without "Via" clients take an answer for one of a firewall before Discord.
        for name, value in {"Via": "1.1 google", **headers}.items():
            self.set_header(name, value)
        self._write(body)

    def _write(self, body: JSON | list[JSON] | str | None) -> None:
        if body is None:
            self.finish()
            return
        html = isinstance(body, str)
        self.set_header("Content-Type", "text/html" if html else "application/json")
        self.finish(body if isinstance(body, str) else json.dumps(body))


_BROKEN = object()
