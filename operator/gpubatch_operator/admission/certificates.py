"""The webhook's certificate: made, kept in a Secret and replaced before it ends, without a moment of distrust.

Each certificate has an authority of its own, whose key is thrown away once it has signed. A replacement has two steps:
first the next certificate is put aside and its authority is published beside the present one; when the API server has
surely read that, replicas serve the next one. Authorities stay in the bundle until they end. Pure but for the random
numbers of the keys: `now` is an argument.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

RENEW_AT = 2 / 3  # of its life
MAX_SETTLE = 300.0  # seconds between the publication of an authority and its use; less if the life is short
SKEW = 300.0  # clocks may differ by so much
MAX_AUTHORITIES = 4


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: str
    key: str

    @property
    def parsed(self) -> x509.Certificate:
        """The certificate itself."""
        return x509.load_pem_x509_certificate(self.certificate.encode())


@dataclass(frozen=True, slots=True)
class Certificates:
    """What the Secret holds. `authorities`: PEM, the newest first."""

    current: Pair
    authorities: tuple[str, ...]
    following: Pair | None = None
    staged_at: float = 0.0

    @property
    def bundle(self) -> str:
        """What the API server is told to trust."""
        return "".join(self.authorities)


def make(names: Sequence[str], now: float, seconds: float) -> tuple[Pair, str]:
    """A certificate for these names and addresses, and its authority."""
    begin = datetime.fromtimestamp(now - min(SKEW, seconds), UTC)
    end = datetime.fromtimestamp(now, UTC) + timedelta(seconds=seconds)

    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"gpubatch admission {now:.3f}")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gpubatch admission")])

    def builder(name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(key.public_key())
        return made.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)

    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    known = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    authority = (
        builder(issuer, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(known, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    leaf = (
        builder(subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(n) for n in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return Pair(_pem(leaf), private), _pem(authority)


def advance(
    old: Certificates | None, names: Sequence[str], now: float, seconds: float, published: bool
) -> Certificates | None:
    """What the Secret should hold instead, or None if it is right.

    Args:
        old: What it holds; None if nothing usable.
        names: What the API server may call us.
        now: Seconds since the epoch.
        seconds: Life of a certificate.
        published: Whether the API server has been given the whole bundle of `old`.
    """
    if old is None or not _serves(old.current, names, now):
        pair, authority = make(names, now, seconds)
        return Certificates(pair, _living((authority, *(old.authorities if old else ())), now))
    if old.following is None:
        cert = old.current.parsed
        life = (cert.not_valid_after_utc - cert.not_valid_before_utc).total_seconds()
        if now < cert.not_valid_before_utc.timestamp() + life * RENEW_AT:
            return None
        pair, authority = make(names, now, seconds)
        return replace(old, following=pair, staged_at=now, authorities=_living((authority, *old.authorities), now))
    if not published or now < old.staged_at + min(MAX_SETTLE, seconds / 20):
        return None
    return Certificates(old.following, _living(old.authorities, now))


def to_secret(certificates: Certificates) -> dict[str, str]:
    """The data of the Secret."""
    c = certificates
    data = {"tls.crt": c.current.certificate, "tls.key": c.current.key, "ca.crt": c.bundle}
    if c.following:
        data |= {"next.crt": c.following.certificate, "next.key": c.following.key, "next.staged": f"{c.staged_at:.3f}"}
    return {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}


def from_secret(data: Mapping[str, str]) -> Certificates | None:
    """What the Secret holds; None if that can't be used."""
    try:
        text = {k: base64.b64decode(v).decode() for k, v in data.items()}
        following = Pair(text["next.crt"], text["next.key"]) if "next.crt" in text else None
        found = Certificates(
            Pair(text["tls.crt"], text["tls.key"]),
            tuple(_pem(c) for c in x509.load_pem_x509_certificates(text["ca.crt"].encode())),
            following,
            float(text.get("next.staged", "0")),
        )
        assert found.current.parsed
        assert following is None or following.parsed
    except (KeyError, ValueError):
        return None
    return found


def _serves(pair: Pair, names: Sequence[str], now: float) -> bool:
    cert = pair.parsed
    there = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return now < cert.not_valid_after_utc.timestamp() and all(_general(n) in there for n in names)


def _living(authorities: Sequence[str], now: float) -> tuple[str, ...]:
    ends = [(a, x509.load_pem_x509_certificate(a.encode()).not_valid_after_utc.timestamp()) for a in authorities]
    return tuple(a for a, end in ends if end > now)[:MAX_AUTHORITIES]


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
