"""The published log over HTTP: somebody follows it by its checkpoints and tiles alone (C2SP tlog-tiles)."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from chat.events import Erased
from eventstore.canonical import encode
from eventstore.errors import LogError
from eventstore.events import Context, NewEvent, StreamWrite
from eventstore.ids import new_id
from eventstore.log import EventLog
from eventstore.merkle import leaf_hash
from eventstore.transparency import tree
from eventstore.transparency.checkpoints import Checkpoint, Checkpointer
from eventstore.transparency.notes import SigningKey
from eventstore.transparency.tiles import Tiles, Tree, extend, leaves_through, parse_tile_path, tile_path
from eventstore.transparency.tree import Frontier
from handlers.services import Services
from tests.conftest import until
from tests.tables import Outage, connect, run
from tests.v3client import serving

KEY = SigningKey.generate("example.com/minutes")
CONTEXT = Context(actor=None, correlation_id="test")
SECRET_TEXT = "what nobody shall read in a tile"
FACT = NewEvent("Fact", encode({"text": SECRET_TEXT}))


async def record(log: EventLog, through: int) -> None:
    """Appends events until the log ends at this position."""
    while (missing := through - await log.head()) > 0:
        await log.append(StreamWrite(f"facts-{new_id()}", [FACT] * min(missing, 400)), context=CONTEXT)


class Follower:
    """Somebody who knows a log by its address and key only."""

    def __init__(self, url: str, http: AsyncHTTPClient) -> None:
        self._url = url
        self._http = http

    async def get(self, path: str, method: str = "GET") -> HTTPResponse:
        return await self._http.fetch(f"{self._url}/log/{path}", method=method, raise_error=False)

    async def tile(self, path: str) -> bytes:
        response = await self.get(f"tile/{path}")
        assert response.code == 200, (path, response.body)
        assert response.headers["Content-Type"] == "application/octet-stream"
        return response.body

    async def checkpoint(self) -> Checkpoint:
        response = await self.get("checkpoint")
        assert (response.code, response.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
        return Checkpoint.open(response.body.decode(), KEY.verifier_key)

    async def level(self, name: str, hashes: int) -> list[bytes]:
        """All tiles of a level that has so many hashes (or bundles of so many entries)."""
        paths = [f"{name}/{tile_path(index)}" for index in range(hashes // 256)]
        if hashes % 256:
            paths.append(f"{name}/{tile_path(hashes // 256)}.p/{hashes % 256}")
        return [await self.tile(path) for path in paths]

    async def hashes(self, level: int, count: int) -> list[bytes]:
        together = b"".join(await self.level(str(level), count))
        assert len(together) == 32 * count
        return [together[start : start + 32] for start in range(0, len(together), 32)]


def entries_of(bundle: bytes) -> list[bytes]:
    entries = []
    while bundle:
        length = int.from_bytes(bundle[:2])
        entries.append(bundle[2 : 2 + length])
        bundle = bundle[2 + length :]
    return entries


@pytest.fixture
def follower(http_client: AsyncHTTPClient, base_url: str) -> Follower:
    return Follower(base_url, http_client)


# Paths


def test_a_tile_s_path_is_that_of_the_specification() -> None:
    assert [tile_path(index) for index in (0, 67, 999, 1000, 1234067)] == [
        "000",
        "067",
        "999",
        "x001/000",
        "x001/x234/067",
    ]


@given(st.integers(0, 10**20), st.integers(1, 255))
def test_every_path_is_read_back(index: int, width: int) -> None:
    assert parse_tile_path(tile_path(index)) == (index, 256)
    assert parse_tile_path(f"{tile_path(index)}.p/{width}") == (index, width)


@pytest.mark.parametrize(
    "path",
    [
        *("", "0", "00", "0000", "x000", "x000/001", "001/002", "x001/x002", "x001//002", "../000", "-01", "000/"),
        *("000.p", "000.p/", "000.p/0", "000.p/01", "000.p/256", "000.p/1000", "000.p/1/"),
        *("\u0661\u0661\u0661", "x001/" * 30 + "001"),
    ],
)
def test_what_is_no_path_of_a_tile_is_none(path: str) -> None:
    assert parse_tile_path(path) is None


# Following


@pytest.mark.gen_test(timeout=60)
async def test_a_follower_computes_the_signed_root_at_every_size(
    log: EventLog, database: str, follower: Follower
) -> None:
    last: Checkpoint | None = None
    for size in (7, 255, 256, 257, 512, 700):
        await record(log, size)
        await Checkpointer(database, KEY, 1).sign_now()

        checkpoint = await follower.checkpoint()
        leaves = await follower.hashes(0, size)
        assert (checkpoint.size, checkpoint.root) == (size, tree.root(leaves))
        assert await follower.hashes(1, size // 256) == [
            tree.root(leaves[start : start + 256]) for start in range(0, size - 255, 256)
        ]
        if last is not None:
            proof = tree.consistency_proof(last.size, size, tree.of_leaves(leaves))
            assert tree.verify_consistency(last.size, size, proof, last.root, checkpoint.root)
        last = checkpoint


@pytest.mark.gen_test(timeout=60)
async def test_bundles_hold_the_entries_that_the_leaves_are_hashes_of_and_no_text(
    log: EventLog, database: str, follower: Follower
) -> None:
    await record(log, 300)
    await Checkpointer(database, KEY, 1).sign_now()

    bundles = await follower.level("entries", 300)

    entries = [entry for bundle in bundles for entry in entries_of(bundle)]
    assert [leaf_hash(entry) for entry in entries] == await follower.hashes(0, 300)
    assert SECRET_TEXT.encode() not in b"".join(bundles)


@pytest.mark.gen_test(timeout=60)
async def test_an_erased_event_s_entry_is_what_it_was(log: EventLog, database: str, follower: Follower) -> None:
    await record(log, 3)
    await Checkpointer(database, KEY, 1).sign_now()
    before = await follower.tile("entries/000.p/3")
    erased = Erased(account_id=None, message_id=2, positions=(2,), reason="asked for", erased_by="operator")
    await log.append(StreamWrite("erasures", [erased.recorded_form()]), context=CONTEXT)

    event = await log.event_at(2)
    assert event is not None
    assert event.data is None
    assert await follower.tile("entries/000.p/3") == before


@pytest.mark.gen_test
async def test_there_is_nothing_before_the_first_checkpoint(log: EventLog, follower: Follower) -> None:
    await record(log, 300)

    for path in ("checkpoint", "key", "tile/0/000", "tile/0/000.p/1", "tile/entries/000", "tile/entries/000.p/1"):
        response = await follower.get(path)
        assert (response.code, response.body) == (404, b'{"message":"Not found!"}'), path


@pytest.mark.gen_test
async def test_what_no_checkpoint_covers_and_what_is_no_tile_is_not_found(
    log: EventLog, database: str, follower: Follower
) -> None:
    await record(log, 300)
    await Checkpointer(database, KEY, 1).sign_now()
    await record(log, 600)

    for path in ("0/000", "0/000.p/255", "0/001.p/44", "1/000.p/1", "entries/000", "entries/001.p/44"):
        assert (await follower.get(f"tile/{path}")).code == 200, path
    for path in ("0/001", "0/001.p/45", "1/000", "1/000.p/2", "2/000.p/1", "63/000.p/1", "entries/001.p/45"):
        assert (await follower.get(f"tile/{path}")).code == 404, path
    for path in ("64/000", "00/000", "-1/000", "x/000", "0/0", "0/000.p/0", "0/000/", "0/x999/x999/x999/x999/x999/999"):
        assert (await follower.get(f"tile/{path}")).code == 404, path
    for path in ("entries/", "entries/0", "entries/000/", "entries/x999/x999/x999/x999/x999/x999/999", "", "0", "0/"):
        assert (await follower.get(f"tile/{path}")).code == 404, path


@pytest.mark.gen_test
async def test_tiles_may_be_kept_for_ever_and_the_checkpoint_may_not(
    log: EventLog, database: str, follower: Follower
) -> None:
    await record(log, 1)
    await Checkpointer(database, KEY, 1).sign_now()

    for path in ("tile/0/000.p/1", "tile/entries/000.p/1"):
        assert "immutable" in (await follower.get(path)).headers["Cache-Control"]
    for path in ("checkpoint", "key"):
        assert (await follower.get(path)).headers["Cache-Control"] == "no-cache"
    assert (await follower.get("key")).body.decode() == f"{KEY.verifier_key}\n"
    assert (await follower.get("key", "DELETE")).headers["Allow"] == "GET"


@pytest.mark.gen_test
async def test_while_the_database_is_away_the_published_log_is_503(
    log: EventLog, services: Services, outage: Outage, http_client: AsyncHTTPClient
) -> None:
    async with serving(services) as port:
        outage.begin()
        try:
            response = await Follower(f"http://127.0.0.1:{port}", http_client).get("checkpoint")
        finally:
            outage.end()
    await until(lambda: log.ready)

    assert (response.code, response.headers["Retry-After"]) == (503, "1")


# Large trees


def roots_of(leaves: list[bytes], sizes: set[int]) -> dict[int, bytes]:
    """The roots of the trees of the first leaves, by their sizes."""
    growing = Frontier()
    roots: dict[int, bytes] = {}
    for leaf in leaves:
        growing.append(leaf)
        if growing.size in sizes:
            roots[growing.size] = growing.root()
    return roots


@pytest.mark.gen_test(timeout=60)
async def test_a_tree_of_three_levels_has_the_tiles_of_the_specification_s_example(
    bare_log: EventLog, database: str
) -> None:
    with connect(database) as connection:
        run(
            connection,
            "INSERT INTO events (position, stream, version, type, data, metadata, recorded_at, salt, leaf_hash) "
            "SELECT i, 's', i, 'Fact', '{{}}', '{{}}', now(), '', sha256(i::text::bytea) "
            "FROM generate_series(1, 70000) AS i",
        )
    leaves = [sha256(b"%d" % position).digest() for position in range(1, 70_001)]
    reader = bare_log.reader
    await extend(reader, 70_000)
    tiles = Tiles(reader)

    assert await tiles.hash_tile(0, 273, 112) == b"".join(leaves[273 * 256 :])
    firsts = [tree.root(leaves[start : start + 256]) for start in range(0, 273 * 256, 256)]
    assert await tiles.hashes(1, 0, 273) == firsts
    assert await tiles.hash_tile(2, 0, 1) == tree.root(leaves[:65536])
    roots = roots_of(leaves, {1, 256, 65_535, 65_536, 65_537, 69_999, 70_000})
    for size, root in roots.items():
        assert await Tree(reader).root(size) == root
    for index, size in ((0, 70_000), (65_536, 70_000), (69_999, 70_000), (300, 65_537)):
        proof = await Tree(reader).inclusion_proof(index, size)
        assert tree.verify_inclusion(leaves[index], index, size, proof, roots[size])
    for old in roots:
        proof = await Tree(reader).consistency_proof(old, 70_000)
        assert tree.verify_consistency(old, 70_000, proof, roots[old], roots[70_000])
    with pytest.raises(LogError, match="the tree has not all of its hashes"):
        await tiles.hash_tile(0, 273, 113)


@pytest.mark.parametrize(
    ("level", "index", "width", "leaves"),
    [(0, 0, 1, 1), (0, 273, 112, 70_000), (1, 1, 17, 69_888), (2, 0, 1, 65_536), (63, 0, 1, 1 << 504)],
)
def test_a_tile_is_there_from_the_tree_on_that_fills_it(level: int, index: int, width: int, leaves: int) -> None:
    assert leaves_through(level, index, width) == leaves
