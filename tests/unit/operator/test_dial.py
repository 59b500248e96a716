"""Where webhooks may go: to public addresses, and where an administrator says so, however an address is written."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from gpubatch_operator import addresses
from gpubatch_operator.notify import dial

PRIVATE = [
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1"),
    *("169.254.169.254", "fe80::1", "fd00:ec2::254", "::1", "::", "ff02::1", "fec0::1", "fc00::1"),  # metadata, local
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),  # IPv4-mapped
    *("::127.0.0.1", "::10.0.0.1"),  # IPv4-compatible
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1"),  # NAT64
    *("2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::"),  # 6to4, Teredo
    *("2001:470:1:2:0:5efe:10.0.0.1", "2a00:1450::200:5efe:127.0.0.1"),  # ISATAP
    *("2001:db8::1", "192.0.2.1", "198.18.0.1", "240.0.0.1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public_are_refused(address: str):
    assert not addresses.allowed(ipaddress.ip_address(address), ())


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8"])
def test_public_addresses_are_allowed(address: str):
    assert addresses.allowed(ipaddress.ip_address(address), ())


def test_an_administrator_may_allow_a_network_and_no_more():
    extra = addresses.networks("10.0.0.0/8, fd00::/8")
    for address, ok in [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("fd00::1", True), ("192.168.0.1", False)]:
        assert addresses.allowed(ipaddress.ip_address(address), extra) is ok
    assert addresses.networks("") == ()


@pytest.mark.parametrize(
    "url",
    [
        *("http://localhost/", "http://127.0.0.1/", "http://[::1]:80/", "http://0x7f.1/", "http://2130706433/"),
        *("http://[::ffff:127.0.0.1]/", "http://user:pass@127.0.0.1/", "http://169.254.169.254/latest/meta-data"),
    ],
)
async def test_a_url_to_a_private_address_is_refused_however_it_is_written(url: str):
    with pytest.raises(dial.RefusedError, match="webhookAllowedNetworks"):
        await dial.resolve(url, ())


@pytest.mark.parametrize("url", ["http://h:99999/", "http://" + "a" * 64 + ".example/", "http://a..b/", "http://[::1/"])
async def test_a_url_that_cannot_be_used_is_refused_with_a_sentence(url: str):
    with pytest.raises(dial.RefusedError, match="isn't a usable URL"):
        await dial.resolve(url, ())


async def test_the_connection_goes_to_the_address_that_was_checked_and_the_name_stays_for_tls():
    targets = await dial.resolve("https://localhost:8443/hook?a=b", addresses.networks("127.0.0.0/8,::1/128"))
    assert {t.url for t in targets} <= {"https://127.0.0.1:8443/hook?a=b", "https://[::1]:8443/hook?a=b"}
    assert {(t.host_header, t.hostname) for t in targets} == {("localhost:8443", "localhost")}


def names(patch: pytest.MonkeyPatch, *addresses: str) -> None:
    """What the DNS says, whatever it is asked."""
    patch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (a, 80)) for a in addresses])


@pytest.mark.parametrize("addresses", [("8.8.8.8", "10.0.0.1"), ("2606:4700::1", "64:ff9b::a00:1", "10.0.0.1")])
async def test_one_private_address_among_public_ones_is_enough_to_refuse(
    addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    names(monkeypatch, *addresses)
    with pytest.raises(dial.RefusedError, match=r"10\.0\.0\.1|64:ff9b::a00:1"):
        await dial.resolve("http://rebinding.example/", ())


async def test_each_address_of_a_name_can_be_tried_in_the_order_of_the_system(monkeypatch: pytest.MonkeyPatch):
    names(monkeypatch, "2606:4700::1", "8.8.8.8", "8.8.8.8", "9.9.9.9", "1.1.1.1")
    urls = [t.url for t in await dial.resolve("https://many.example/x", ())]
    assert urls == ["https://[2606:4700::1]:443/x", "https://8.8.8.8:443/x", "https://9.9.9.9:443/x"]
