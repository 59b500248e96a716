"""Which addresses a URL that somebody else has named may lead to: public ones, and networks that a setting allows.

Whoever may name a URL must not get, by us, to what only the cluster can reach.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from gpubatch_operator.settings import listed

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# All public IPv6 addresses are in here (RFC 4291); `is_global` also holds for the deprecated ::127.0.0.1 and fec0::1.
UNICAST = ipaddress.ip_network("2000::/3")
# Addresses that carry an IPv4 address in disguise: 6to4 (NAT64's aren't in UNICAST), and ISATAP's by their interface.
DISGUISES = (ipaddress.ip_network("2002::/16"),)
ISATAP = (0x0000_5EFE, 0x0200_5EFE)


def networks(text: str) -> tuple[Network, ...]:
    """The networks of a setting.

    Raises:
        ValueError: Not a comma-separated list of CIDRs.
    """
    return tuple(map(ipaddress.ip_network, listed(text)))


def allowed(address: Address, extra: Sequence[Network]) -> bool:
    """Whether an address is public, or in one of the networks that the settings allow."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if any(address in n for n in extra if n.version == address.version):
        return True
    if isinstance(address, ipaddress.IPv6Address) and (address not in UNICAST or _disguised(address)):
        return False
    return address.is_global and not address.is_multicast


def _disguised(address: ipaddress.IPv6Address) -> bool:
    return any(address in n for n in DISGUISES) or (int(address) >> 32) & 0xFFFF_FFFF in ISATAP
