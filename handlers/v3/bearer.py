"""The token of a request that has no body: it stands in a header, so that nothing secret stands in the address."""

from __future__ import annotations

from tornado.httputil import HTTPServerRequest


def bearer_token(request: HTTPServerRequest) -> str:
    """The token of `Authorization: Bearer <token>` (RFC 6750, section 2.1), or the empty text, which is nobody's."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
