"""Who asks, where proxies stand in between: what their headers say is believed of proxies that are trusted alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network


class Proxies:
    """Addresses and networks (`10.0.0.1`, `10.0.0.0/8`) whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed.

    Raises `ValueError` for what is neither.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = [ip_network(network, strict=False) for network in networks]

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trusts(self, address: str) -> bool:
        """Whether this is the address of a proxy that is believed."""
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def origin(self, peer: str, protocol: str, headers: Mapping[str, str]) -> tuple[str, str]:
        """The address that a request comes from, and the protocol by which; those of the peer if nobody says more.

        Each proxy adds whom it got the request from at the end of the list, so it is read from there, as far as those
        who wrote it are trusted: what stands before may be made up by the client.
        """
        if not self.trusts(peer):
            return peer, protocol
        address = peer
        for named in reversed(headers.get("X-Forwarded-For", "").split(",")):
            parsed = _parsed(named.strip())
            if parsed is None:
                break
            address = str(parsed)
            if not self.trusts(address):
                break
        told = headers.get("X-Forwarded-Proto", "").rpartition(",")[2].strip().lower()
        return address, told if told in ("http", "https") else protocol


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # A socket that takes both kinds shows IPv4 inside IPv6.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
