"""Password hashes by bcrypt, computed on a few threads beside the loop.

bcrypt reads 72 bytes and no NUL, while a password of 20 characters may have 80 bytes: so it gets the password's
SHA-256 in base64, which is 44 bytes of any password.
"""

from __future__ import annotations

import asyncio
import base64
import os
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import bcrypt

from chat.refusals import TooBusy

MAX_WAITING = 100


class PasswordHasher:
    """Hashes and checks passwords off the loop; `cost` is the base-2 logarithm of bcrypt's rounds (4 to 31).

    bcrypt lets go of the interpreter while it works, so a thread for each core is as many as help. Both methods
    raise `TooBusy` rather than let more than `MAX_WAITING` callers queue up.
    """

    def __init__(self, cost: int) -> None:
        self._cost = cost
        self._pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="bcrypt")
        self._waiting = 0
        # In the form of a hash at this cost, and that of no password that anybody could find.
        self._decoy = f"$2b${cost:02}${'.' * 53}"

    async def hash(self, password: str) -> str:
        """A fresh salted hash of the password."""
        return await self._run(password, None)

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether the password is the one that was hashed.

        With no hash it is not, after as long a time as a check takes: an answer's time must not tell which names exist.
        """
        if password_hash is None:
            await self._compare(password, self._decoy)
            return False
        return await self._compare(password, password_hash)

    def close(self) -> None:
        """Ends the threads once they have done what they are doing."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _compare(self, password: str, password_hash: str) -> bool:
        return bool(await self._run(password, password_hash))

    async def _run(self, password: str, password_hash: str | None) -> str:
        if self._waiting >= MAX_WAITING:
            raise TooBusy("too many passwords wait to be checked")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._work, password, password_hash)
        finally:
            self._waiting -= 1

    def _work(self, password: str, password_hash: str | None) -> str:
        digest = base64.b64encode(sha256(password.encode()).digest())
        if password_hash is None:
            return bcrypt.hashpw(digest, bcrypt.gensalt(self._cost)).decode()
        return password_hash if bcrypt.checkpw(digest, password_hash.encode()) else ""
