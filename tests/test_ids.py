"""Identifiers: nobody gets one twice, in whatever thread or process they ask."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import RFC_4122, UUID

from eventstore.ids import new_id

# A process of its own: one with threads is not to fork. Both take ids before and after.
FORKING = """
import json, os
from eventstore.ids import new_id
before = [new_id() for _ in range(10)]
ours, theirs = os.pipe()
if not (child := os.fork()):
    os.write(theirs, json.dumps([new_id() for _ in range(300)]).encode())
    os._exit(0)
os.close(theirs)
own = [new_id() for _ in range(300)]
with os.fdopen(ours) as sent:
    print(json.dumps([before, own, json.load(sent)]))
os.waitpid(child, 0)
"""


def test_an_id_is_a_uuid_of_version_7_that_tells_when_it_was_made() -> None:
    for _ in range(600):
        earliest = time.time_ns() // 1_000_000
        found = UUID(text := new_id())

        assert (str(found), found.version, found.variant) == (text, 7, RFC_4122)
        assert earliest <= found.int >> 80 <= time.time_ns() // 1_000_000


def test_a_child_never_repeats_what_its_parent_would_take() -> None:
    house = Path(__file__).parent.parent
    printed = subprocess.run([sys.executable, "-c", FORKING], cwd=house, check=True, capture_output=True, timeout=60)
    before, own, theirs = json.loads(printed.stdout)

    random_parts = [each[15:] for each in (*before, *own, *theirs)]
    assert len(set(random_parts)) == 610


def test_threads_never_share_one() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: [new_id()[15:] for _ in range(2000)], range(8)))

    assert len({each for some in found for each in some}) == 16_000
