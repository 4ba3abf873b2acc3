"""TLS: `load_tls` from files, `self_signed_tls` and `self_signed_pem` from nothing."""

import datetime
import ipaddress
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wan_streamer.errors import ServingError

VALID = datetime.timedelta(days=90)


def load_tls(certfile: str | Path, keyfile: str | Path) -> ssl.SSLContext:
    """What a server needs of a PEM certificate and its key. Raises `ServingError` that says which file is wrong."""
    for name, file in (("certificate", certfile), ("key", keyfile)):
        if not Path(file).is_file():
            raise ServingError(f"HTTPS {name}: expected a PEM file, found nothing at {file}")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certfile, keyfile, password=lambda: b"")  # never asks for one on the terminal
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ServingError(
            f"HTTPS: expected a PEM certificate in {certfile} and its key, without password, in {keyfile} ({error})"
        ) from error
    return context


def self_signed_tls(hosts: Sequence[str]) -> ssl.SSLContext:
    """A new certificate for these names, which a browser has to be told to trust."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "cert.pem"), Path(folder, "key.pem")
        for file, content in zip(files, self_signed_pem(hosts), strict=True):
            file.write_bytes(content)
        return load_tls(*files)


def self_signed_pem(hosts: Sequence[str]) -> tuple[bytes, bytes]:
    """The certificate and its key (PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "wan-streamer")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of visitors differ
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]").partition("%")[0]))
    except ValueError:
        return x509.DNSName(host)
