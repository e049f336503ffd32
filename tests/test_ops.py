"""Is it alive, can it serve, how is it doing: `/healthz`, `/readyz` and `/metrics`; and what V3 answers while the
database is away or broken.

The faults are real: backends are terminated, and the database takes no connections until it is allowed to again.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs
from tornado.httpclient import AsyncHTTPClient

from eventstore.log import EventLog
from handlers.services import Services
from handlers.v3 import ENDPOINTS
from tests.conftest import NO_CONNECTIONS
from tests.tables import Outage
from tests.v3client import PASSWORD, V3, Person, credentials, serving, texts, until

READY = (200, {"status": "ready"})
NOT_READY = (503, {"status": "not ready", "message": "The log cannot be reached now!"})
UNAVAILABLE = (503, {"message": "The log cannot be reached now, try again!"})
INTERNAL_ERROR = (500, {"message": "Internal error!"})
METHOD_NOT_ALLOWED = (405, {"message": "Method not allowed!"})
RECOVERS_WITHIN = 10.0


@contextmanager
def without_table(conninfo: str, table: str) -> Iterator[None]:
    """A table is not where it belongs until this ends."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER TABLE {} RENAME TO elsewhere").format(sql.Identifier(table)))
        try:
            yield
        finally:
            connection.execute(sql.SQL("ALTER TABLE elsewhere RENAME TO {}").format(sql.Identifier(table)))


@pytest.fixture
def v3(http_client: AsyncHTTPClient, base_url: str) -> V3:
    return V3(base_url, http_client)


@contextmanager
def away(outage: Outage) -> Iterator[None]:
    """The database is lost, and takes no connections until this ends."""
    outage.begin()
    try:
        yield
    finally:
        outage.end()


def logging() -> AbstractContextManager[list[MutableMapping[str, Any]]]:
    """The log's lines with what the context adds to them."""
    return capture_logs(processors=[merge_contextvars])


async def is_ready(v3: V3) -> tuple[int, dict[str, object]]:
    return (await v3.ask("/readyz", method="GET")).said


def bodies(ann: Person, channel: str) -> dict[str, dict[str, object]]:
    """A body for each endpoint that it would serve, were the database there."""
    token = {"token": ann.token}
    password = {"username": ann.username, "password": PASSWORD}
    return {
        "register": credentials(),
        "login": password,
        "generatetoken": password,
        "gettoken": password,
        "getmessagesforeveryone": token | {"count": 5},
        "getmysentmessages": token,
        "readmessagesfromchannel": token | {"name": channel, "count": 5},
        "deletemessage": token | {"message_id": 1},
        "makechannel": token | {"name": "another"},
        "addusertochannel": token | {"name": channel, "username": ann.username},
        "sendmessage": token | {"channel": channel, "message": "x"},
        "getchannels": token,
        "getdms": token | {"count": 5},
        "senddm": token | {"username": ann.username, "message": "x"},
        "senddcmsgwithtoken": token | {"message": "x"},
        "senddcmsg": token | {"channel": channel, "message": "x"},
        "linkdiscord": token,
    }


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.gen_test
async def test_healthz_is_200_ok(v3: V3, slash: str) -> None:
    answer = await v3.ask(f"/healthz{slash}", method="GET")

    assert answer.said == (200, {"status": "ok"})


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.gen_test
async def test_readyz_is_200_once_the_log_listens(v3: V3, log: EventLog, slash: str) -> None:
    await log.listening()

    answer = await v3.ask(f"/readyz{slash}", method="GET")

    assert answer.said == READY


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
@pytest.mark.gen_test
async def test_any_other_method_is_405(v3: V3, path: str) -> None:
    answer = await v3.ask(path, b"{}", method="POST")

    assert answer.said == METHOD_NOT_ALLOWED
    assert answer.headers["Allow"] == "GET"


@pytest.mark.gen_test
async def test_readyz_is_503_while_the_log_is_lost_and_200_again_afterwards(
    v3: V3, log: EventLog, outage: Outage
) -> None:
    await log.listening()
    assert await is_ready(v3) == READY

    with away(outage):
        await until(lambda: not log.ready, "the loss is noticed")
        lost = await is_ready(v3)
        alive = await v3.ask("/healthz", method="GET")
    await until(lambda: log.ready, "it is ready again", within=RECOVERS_WITHIN)

    assert lost == NOT_READY
    assert alive.said == (200, {"status": "ok"})
    assert await is_ready(v3) == READY


@pytest.mark.gen_test
async def test_readyz_is_503_while_other_processes_events_cannot_arrive(v3: V3, log: EventLog, outage: Outage) -> None:
    ann = await v3.person()
    channel = await ann.makes()
    await log.listening()

    outage.keep_new_ones_out()
    try:
        outage.end_listeners()
        await until(lambda: not log.ready, "the loss is noticed")
        answer = await is_ready(v3)
        sent = await ann.does("sendmessage", channel=channel, message="x")
    finally:
        outage.end()
    await until(lambda: log.ready, "it is ready again", within=RECOVERS_WITHIN)

    assert answer == NOT_READY
    # Nobody else is heard, but what is asked here can be done.
    assert sent.status == 200


async def metrics(services: Services, http: AsyncHTTPClient, **counts: object) -> dict[str, object]:
    """The values of all samples, by their names, with a reason in brackets; as Prometheus would read them."""
    told = dataclasses.replace(services, connection_statistics=lambda: NO_CONNECTIONS | counts)
    async with serving(told) as port:
        response = await http.fetch(f"http://127.0.0.1:{port}/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(response.body.decode()))
    assert all(family.documentation and family.type in ("gauge", "counter") for family in families)
    return {
        sample.name + "".join(f"[{reason}]" for reason in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.gen_test
async def test_metrics_are_what_prometheus_reads(
    services: Services, log: EventLog, http_client: AsyncHTTPClient
) -> None:
    await log.listening()
    closed = {"ping timeout": 2, 'a "quoted"\nreason \\': 1}

    read = await metrics(
        services, http_client, open=3, opened=6, closed=closed, delivered=10**15 + 1, delivered_bytes=200
    )

    assert read == {
        "minutebook_connections_open": 3,
        "minutebook_connections_opened_total": 6,
        "minutebook_connections_closed_total[ping timeout]": 2,
        'minutebook_connections_closed_total[a "quoted"\nreason \\]': 1,
        "minutebook_delivered_total": 10**15 + 1,
        "minutebook_delivered_bytes_total": 200,
        "minutebook_log_ready": 1,
        "minutebook_log_head_position": await log.head(),
    }


@pytest.mark.gen_test
async def test_metrics_are_told_while_the_log_is_lost_but_for_its_head(
    services: Services, log: EventLog, outage: Outage, http_client: AsyncHTTPClient
) -> None:
    await log.listening()

    with away(outage):
        await until(lambda: not log.ready, "the loss is noticed")
        read = await metrics(services, http_client, open=3)

    assert (read["minutebook_log_ready"], read["minutebook_connections_open"]) == (0, 3)
    assert "minutebook_log_head_position" not in read


@pytest.mark.gen_test
async def test_every_endpoint_is_503_while_the_log_is_lost(v3: V3, log: EventLog, outage: Outage) -> None:
    ann = await v3.person()
    channel = await ann.makes()
    await ann.sends(channel, "before")  # everything that can be cached is cached now
    before = await log.head()
    asked = bodies(ann, channel)

    with away(outage):
        await until(lambda: not log.ready, "the loss is noticed")
        answers = {endpoint: await v3.call(endpoint, None, **asked[endpoint]) for endpoint in ENDPOINTS}
    await until(lambda: log.ready, "it is ready again", within=RECOVERS_WITHIN)

    assert {endpoint: answer.said for endpoint, answer in answers.items()} == dict.fromkeys(ENDPOINTS, UNAVAILABLE)
    assert {answer.headers["Retry-After"] for answer in answers.values()} == {"1"}
    assert len({answer.request_id for answer in answers.values()}) == len(ENDPOINTS)
    assert await log.head() == before


@pytest.mark.gen_test
async def test_a_crowd_gets_503_while_the_log_is_lost_and_nobody_hangs(v3: V3, log: EventLog, outage: Outage) -> None:
    ann = await v3.person()
    channel = await ann.makes()

    with away(outage):
        asked = [ann.does("sendmessage", channel=channel, message="x") for _ in range(100)]
        answers = await asyncio.wait_for(asyncio.gather(*asked), 15)
    await until(lambda: log.ready, "it is ready again", within=RECOVERS_WITHIN)

    assert [answer.said for answer in answers] == [UNAVAILABLE] * 100
    assert await ann.reads(channel) == []


@pytest.mark.gen_test
async def test_as_soon_as_it_is_ready_again_everything_is_served(v3: V3, log: EventLog, outage: Outage) -> None:
    ann = await v3.person()
    channel = await ann.makes()
    with away(outage):
        await until(lambda: not log.ready, "the loss is noticed")
    await until(lambda: log.ready, "it is ready again", within=RECOVERS_WITHIN)

    # Nothing was asked meanwhile, so no request has found out that its connection was dead.
    sent = await ann.does("sendmessage", channel=channel, message="after")
    read = await ann.reads(channel)
    made = await v3.call("register", None, **credentials())

    assert [sent.status, made.status] == [200, 201]
    assert texts(read) == ["after"]


@pytest.mark.gen_test
async def test_what_is_in_flight_when_the_log_is_lost_is_503_and_not_recorded(
    v3: V3, log: EventLog, database: str
) -> None:
    ann = await v3.person()
    channel = await ann.makes()

    with psycopg.connect(database, autocommit=True) as beside, beside.transaction():
        # Whoever appends waits for this lock, in the middle of its statement.
        beside.execute("SELECT FROM log_head FOR UPDATE")
        sending = [asyncio.create_task(ann.does("sendmessage", channel=channel, message="x")) for _ in range(10)]
        await until(lambda: end_those_who_wait(database), "the append is under way")
        # One that comes later waits in a connection that was opened anew.
        await until(
            lambda: not end_those_who_wait(database) and all(each.done() for each in sending), "all are answered"
        )
        answers = await asyncio.wait_for(asyncio.gather(*sending), 10)
    await until(lambda: log.ready, "it is ready again", within=RECOVERS_WITHIN)

    assert [answer.said for answer in answers] == [UNAVAILABLE] * 10
    assert await ann.reads(channel) == []


def end_those_who_wait(database: str) -> bool:
    """Ends the connections that wait for a lock; whether there was any."""
    with psycopg.connect(database, autocommit=True) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return ended.rowcount > 0


@pytest.mark.gen_test
async def test_whatever_breaks_while_they_send_what_was_acknowledged_is_there_once(
    v3: V3, log: EventLog, outage: Outage
) -> None:
    ann = await v3.person()
    channel = await ann.makes()
    sent: list[tuple[str, int]] = []

    async def send(sender: int) -> None:
        for number in range(30):
            text = f"{sender}-{number}"
            sent.append((text, (await ann.does("sendmessage", channel=channel, message=text)).status))

    sending = asyncio.gather(*(send(sender) for sender in range(10)))
    for _ in range(3):
        much = len(sent) + 40
        await until(lambda much=much: len(sent) >= much, "they send")  # type: ignore[misc]
        outage.end_connections()
    await asyncio.wait_for(sending, 30)
    await until(lambda: log.ready, "it is ready again", within=RECOVERS_WITHIN)

    assert {status for _, status in sent} <= {200, 503}
    kept = texts(await ann.reads(channel))
    assert len(kept) == len(set(kept))
    assert {text for text, status in sent if status == 200} <= set(kept)


@pytest.mark.parametrize("endpoint", ["readmessagesfromchannel", "sendmessage"])
@pytest.mark.gen_test
async def test_an_unexpected_fault_is_500_internal_error_and_logged_under_the_requests_id(
    v3: V3, log: EventLog, database: str, endpoint: str
) -> None:
    ann = await v3.person()
    channel = await ann.makes()
    before = await log.head()

    with without_table(database, "messages"), logging() as logged:
        answer = await v3.call(endpoint, None, **bodies(ann, channel)[endpoint])
        meanwhile = await ann.does("getchannels")

    assert answer.said == INTERNAL_ERROR
    [fault] = [line for line in logged if line["log_level"] == "error"]
    assert (fault["event"], fault["request_id"]) == ("a request failed", answer.request_id)
    assert meanwhile.status == 200
    assert await log.head() == before
    assert (await ann.does("sendmessage", channel=channel, message="after")).status == 200
    assert texts(await ann.reads(channel)) == ["after"]


@pytest.mark.gen_test
async def test_what_could_not_be_served_is_logged_under_the_requests_id(v3: V3, log: EventLog, outage: Outage) -> None:
    ann = await v3.person()

    with away(outage), logging() as logged:
        answer = await ann.does("getchannels")
    await until(lambda: log.ready, "it is ready again", within=RECOVERS_WITHIN)

    lines = [line for line in logged if line["event"] == "a request could not be served now"]
    assert [(line["log_level"], line["request_id"]) for line in lines] == [("warning", answer.request_id)]
