"""Source addresses, sealed: whoever reads the log, a proof or an export does not learn where somebody wrote from.

The key follows from the server's secret, so whoever has that can open them, and nobody else.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES = 12


class SourceSeal:
    """Seals network addresses by AES-256-GCM, and opens what it has sealed.

    A nonce is drawn anew for each, so the same address never looks the same twice.
    """

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(hmac.digest(secret, b"minutebook sources", sha256))

    def seal(self, address: str) -> str:
        """The address as the log keeps it: the base64 of the nonce and the sealed text."""
        nonce = os.urandom(_NONCE_BYTES)
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, address.encode(), None)).decode()

    def open(self, sealed: str) -> str | None:
        """The address; None if it was sealed by another secret, or damaged."""
        try:
            raw = base64.b64decode(sealed, validate=True)
            return self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], None).decode()
        except (binascii.Error, InvalidTag, ValueError):
            return None
