"""Certificates for tests, made by the openssl program: an authority, and a server that it vouches for."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path


def _openssl(*words: object) -> str:
    return subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, text=True).stdout


def make_authority(place: Path, subject: str = "/O=Test/CN=Test Root") -> Path:
    """A new authority; its key is beside it, with ``.key`` at the end."""
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    key = place.with_suffix(".key")
    _openssl(
        "req", "-x509", *curve, "-nodes", "-utf8", "-days", 2, "-subj", subject, "-keyout", key, "-out", place
    )
    return place


def server_context(authority: Path, name: str) -> ssl.SSLContext:
    """What a server of that name presents."""
    place = authority.parent / name
    key, request, extensions = (place.with_name(f"{name}.{end}") for end in ("key", "csr", "ext"))
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    _openssl("req", *curve, "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    extensions.write_text(f"subjectAltName=DNS:{name}\n")
    signed = ("-CA", authority, "-CAkey", authority.with_suffix(".key"), "-CAcreateserial")
    _openssl("x509", "-req", "-in", request, *signed, "-days", 2, "-extfile", extensions, "-out", place)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place, key)
    return context


def hash_of(certificate: Path) -> str:
    """Under which OpenSSL looks for it."""
    return _openssl("x509", "-in", certificate, "-noout", "-hash").strip()


def digest_of(certificate: Path) -> str:
    text = _openssl("x509", "-in", certificate, "-noout", "-fingerprint", "-sha256")
    return text.partition("=")[2].strip().replace(":", "").lower()
