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
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit, urlunsplit

from gpubatch_operator.addresses import Address, Network, allowed

MOST = 3  # addresses of a name that are tried


class RefusedError(Exception):
    """The address may not be dialled; the message names the setting that would allow it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL with its host replaced by a checked address, and the name for `Host` and TLS."""

    url: str
    host_header: str
    hostname: str


async def resolve(url: str, extra: Sequence[Network], resolvers: Executor | None = None) -> list[Target]:
    """The checked targets of a URL, the best first: an address that can't be reached isn't the only one, perhaps.

    Args:
        extra: Networks that are allowed besides public ones.
        resolvers: Threads that look names up; by default those of the event loop.

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
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        infos = await asyncio.get_running_loop().run_in_executor(resolvers, look_up)
    except OSError as e:
        raise RefusedError(f"{host} doesn't resolve: {e}") from None
    addresses = list(dict.fromkeys(ipaddress.ip_address(info[4][0]) for info in infos))
    for address in addresses:
        if not allowed(address, extra):
            raise RefusedError(
                f"{host} is {address}, which isn't a public address; an administrator can allow its network "
                "by the setting webhookAllowedNetworks"
            )
    bare = f"[{host}]" if ":" in host else host
    named = f"{bare}:{parts.port}" if parts.port else bare
    return [Target(urlunsplit(parts._replace(netloc=_netloc(a, port))), named, host) for a in addresses[:MOST]]


def _netloc(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
