"""The webhook's certificate: always one that is trusted, replaced in time, whatever is found in the Secret."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import replace
from pathlib import Path

from gpubatch_operator.admission import certificates
from gpubatch_operator.admission.certificates import Certificates, advance, from_secret, make, to_secret
from gpubatch_operator.admission.trust import follow_files, load

NAMES = ["gpubatch-admission.gpubatch-system.svc", "10.0.0.1"]
DAY = 86400.0
LIFE = 90 * DAY
NOW = 1_800_000_000.0


def first() -> Certificates:
    made = advance(None, NAMES, NOW, LIFE, published=False)
    assert made is not None
    return made


def trusts(authorities: str, pair: certificates.Pair) -> bool:
    """Whether a client that trusts these takes this certificate, by OpenSSL itself."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load(server, pair)
    return handshake(server, authorities)


def handshake(server: ssl.SSLContext, authorities: str) -> bool:
    """Whether a client that trusts these takes what is served."""
    client = ssl.create_default_context(cadata=authorities)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    a = client.wrap_bio(to_client, to_server, server_hostname=NAMES[0])
    b = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (a, b):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return a.version() is not None


def test_it_is_for_its_names_and_trusted_by_its_own_authority_only():
    pair, authority = make(NAMES, time.time(), LIFE)
    assert trusts(authority, pair)
    assert not trusts(make(NAMES, time.time(), LIFE)[1], pair)


def test_what_the_secret_holds_is_read_as_it_was_written():
    held = first()
    staged = advance(held, NAMES, NOW + 70 * DAY, LIFE, published=True)
    assert staged is not None
    for each in (held, staged):
        assert from_secret(to_secret(each)) == each


def test_a_secret_that_somebody_has_broken_is_made_anew():
    data = to_secret(first())
    assert from_secret({}) is None
    assert from_secret(data | {"tls.crt": "AAAA"}) is None
    assert from_secret(data | {"ca.crt": "no base64!"}) is None


def test_nothing_changes_for_two_thirds_of_its_life():
    assert advance(first(), NAMES, NOW + 59 * DAY, LIFE, published=True) is None


def test_the_next_one_is_trusted_before_it_is_served_and_the_old_one_still_after():
    held = first()
    staged = advance(held, NAMES, NOW + 60 * DAY, LIFE, published=True)
    assert staged is not None
    assert staged.current == held.current
    assert len(staged.authorities) == 2
    # Neither too early nor before the API server was told.
    assert advance(staged, NAMES, NOW + 60 * DAY + 60, LIFE, published=True) is None
    assert advance(staged, NAMES, NOW + 61 * DAY, LIFE, published=False) is None
    renewed = advance(staged, NAMES, NOW + 61 * DAY, LIFE, published=True)
    assert renewed is not None
    assert renewed.current == staged.following
    assert renewed.authorities == staged.authorities


def test_an_authority_leaves_the_bundle_when_it_ends():
    held: Certificates | None = first()
    for day in range(60, 1000):
        held = advance(held, NAMES, NOW + day * DAY, LIFE, published=True) or held
        assert held is not None
        assert len(held.authorities) <= 3


def test_one_that_has_ended_or_is_for_other_names_is_replaced_at_once():
    held = first()
    for now, names in ((NOW + 91 * DAY, NAMES), (NOW, [*NAMES, "another.svc"])):
        replaced = advance(held, names, now, LIFE, published=True)
        assert replaced is not None
        assert replaced.following is None
        assert replaced.current != held.current


def test_a_lost_key_is_not_served():
    held = first()
    data = to_secret(replace(held, following=None))
    del data["tls.key"]
    assert from_secret(data) is None


async def test_a_certificate_of_others_is_served_and_read_anew_when_it_changes(tmp_path: Path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authorities: list[str] = []

    def put() -> None:
        pair, authority = make(NAMES, time.time(), LIFE)
        (tmp_path / "tls.crt").write_text(pair.certificate)
        (tmp_path / "tls.key").write_text(pair.key)
        authorities.append(authority)

    ready = asyncio.Event()
    following = asyncio.create_task(follow_files(context, tmp_path, ready.set, pause=0.01))
    put()
    await ready.wait()
    assert handshake(context, authorities[0])
    put()
    while not handshake(context, authorities[1]):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert not handshake(context, authorities[0])
    following.cancel()
