"""The receiver's own certificate authority, and the certificates that its replicas serve with.

Steps are handed all authorities that are there when they begin, and keep them. So a new authority is
made long before the old one ends, and signs only when that is near: by then every step knows it.
"""

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LEAF_LIFE = timedelta(days=30)
AUTHORITY_LIFE = timedelta(days=730)
SKEW = timedelta(minutes=10)
"""Clocks of nodes differ."""


@dataclass(frozen=True)
class Authority:
    """A certificate that signs others, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(compare=False)

    @property
    def ends(self) -> datetime:
        """When it is trusted no longer."""
        return self.certificate.not_valid_after_utc

    @property
    def halfway(self) -> datetime:
        """When the next one must be there."""
        return self.certificate.not_valid_before_utc + AUTHORITY_LIFE / 2


def new_authority(now: datetime) -> Authority:
    """Return a new authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "finetune-operator progress")])
    certificate = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def renewed(authorities: list[Authority], now: datetime) -> list[Authority]:
    """Return the authorities that are to be: without ended ones, with the next in time."""
    living = [each for each in authorities if each.ends > now]
    if not living or all(each.halfway <= now for each in living):
        living.append(new_authority(now))
    return living


def signing(authorities: list[Authority], now: datetime) -> Authority:
    """Return the authority that signs: the oldest that outlives what it signs."""
    lasting = [each for each in authorities if each.ends > now + LEAF_LIFE]
    return min(lasting or authorities, key=lambda each: each.ends)


def serving_certificate(authority: Authority, host: str, now: datetime) -> bytes:
    """Return a key and a certificate for a host name or address, as one PEM text."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate.subject
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "finetune-operator receiver")])
    certificate = (
        _builder(name, issuer, key.public_key(), now, min(LEAF_LIFE, authority.ends - now))
        .add_extension(x509.SubjectAlternativeName([_name_of(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
        .sign(authority.key, hashes.SHA256())
    )
    return _pem_key(key) + certificate.public_bytes(Encoding.PEM)


def bundle(authorities: list[Authority]) -> str:
    """Return all authorities as a step trusts them, PEM."""
    return "".join(
        each.certificate.public_bytes(Encoding.PEM).decode("ascii") for each in authorities
    )


def keys(authorities: list[Authority]) -> str:
    """Return the authorities' keys in the order of `bundle`, PEM."""
    return "".join(_pem_key(each.key).decode("ascii") for each in authorities)


def read(certificates: bytes, private_keys: bytes) -> list[Authority]:
    """Return the authorities of a bundle and its keys.

    Raises:
        ValueError: they are broken, or do not belong together.
    """
    found = x509.load_pem_x509_certificates(certificates) if certificates.strip() else []
    end = b"-----END PRIVATE KEY-----\n"
    texts = [part + end for part in private_keys.split(end) if part.strip()]
    if len(texts) != len(found):
        raise ValueError(f"{len(found)} certificates and {len(texts)} keys")
    authorities = []
    for certificate, text in zip(found, texts, strict=True):
        key = load_pem_private_key(text, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("a key is of another kind")
        if key.public_key() != certificate.public_key():
            raise ValueError("a key is that of another certificate")
        authorities.append(Authority(certificate, key))
    return authorities


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def _builder(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates,
        crl_sign=signs_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _name_of(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
