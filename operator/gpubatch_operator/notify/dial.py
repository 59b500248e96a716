"""Where a webhook may go: public addresses, and networks that the operator's settings allow.

Whoever may create a job may name any URL, so the operator must not become a way to reach what only the cluster can
reach. The name is resolved once, each address is checked, and the connection goes to the very address that was
checked (a name could be answered differently the second time).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# All public IPv6 addresses are in here (RFC 4291); `is_global` also holds for the deprecated ::127.0.0.1 and fec0::1.
UNICAST = ipaddress.ip_network("2000::/3")
# Addresses that carry an IPv4 address in disguise: 6to4 (NAT64's aren't in UNICAST).
DISGUISES = (ipaddress.ip_network("2002::/16"),)


class RefusedError(Exception):
    """The address may not be dialled; the message names the setting that would allow it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL with its host replaced by a checked address, and the name for `Host` and TLS."""

    url: str
    host_header: str
    hostname: str


def networks(text: str) -> tuple[Network, ...]:
    """The networks of the setting `webhook_allowed_networks`.

    Raises:
        ValueError: Not a comma-separated list of CIDRs.
    """
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())


def allowed(address: Address, extra: Sequence[Network]) -> bool:
    """Whether an address is public, or in one of the networks that the settings allow."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if any(address in n for n in extra if n.version == address.version):
        return True
    if isinstance(address, ipaddress.IPv6Address) and (address not in UNICAST or any(address in n for n in DISGUISES)):
        return False
    return address.is_global and not address.is_multicast


async def resolve(url: str, extra: Sequence[Network]) -> Target:
    """The checked target of a URL.

    Raises:
        RefusedError: The URL can't be used, or its name doesn't resolve, or to an address that isn't allowed.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as e:  # a port out of range, a label that is too long
        raise RefusedError(f"{url} isn't a usable URL: {e}") from None
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise RefusedError(f"{host} doesn't resolve: {e}") from None
    addresses = [ipaddress.ip_address(info[4][0]) for info in infos]
    for address in addresses:
        if not allowed(address, extra):
            raise RefusedError(
                f"{host} is {address}, which isn't a public address; an administrator can allow its network "
                "by the setting webhookAllowedNetworks"
            )
    address = addresses[0]
    netloc = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    bare = f"[{host}]" if ":" in host else host
    named = f"{bare}:{parts.port}" if parts.port else bare
    return Target(urlunsplit(parts._replace(netloc=netloc)), named, host)
