"""What a registry gets, and a proxy, on this host's loopback, for an engine that reaches nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import os
import ssl
import subprocess
import urllib.request

from dockers import layer_of

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def authority(place, name):
    """A new authority's certificate, and beside it a server's for ``name``: its certificate and its key."""
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    made += ["-days", "2", "-keyout", place / "ca.key", "-out", place / "ca.pem", "-subj", "/CN=Test"]
    subprocess.run(made, check=True, capture_output=True)
    server = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    server += ["-days", "2", "-keyout", place / "key.pem", "-out", place / "cert.pem", "-subj", f"/CN={name}"]
    server += ["-CA", place / "ca.pem", "-CAkey", place / "ca.key"]
    server += ["-addext", f"subjectAltName=DNS:{name}", "-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(server, check=True, capture_output=True)
    return place / "ca.pem", place / "cert.pem", place / "key.pem"


def upload(base, name, tag="latest"):
    """Put an image of one file into the registry at the address ``base``."""
    plain = layer_of("what", f"{name} of {base}\n".encode())
    layer = gzip.compress(plain)
    root = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain).hexdigest()}"]}
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    config = json.dumps({"architecture": architecture, "os": "linux", "config": {}, "rootfs": root}).encode()
    parts = [(_CONFIG, config), (_LAYER, layer)]
    described = [
        {"mediaType": kind, "size": len(data), "digest": f"sha256:{hashlib.sha256(data).hexdigest()}"}
        for kind, data in parts
    ]
    for (_, data), one in zip(parts, described, strict=True):
        place = _ask("POST", f"{base}/v2/{name}/blobs/uploads/").headers["Location"]
        joint = "&" if "?" in place else "?"
        _ask("PUT", f"{place}{joint}digest={one['digest']}", data, "application/octet-stream")
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": described[0], "layers": described[1:]}
    _ask("PUT", f"{base}/v2/{name}/manifests/{tag}", json.dumps(manifest).encode(), _MANIFEST)


def _ask(method, address, data=b"", kind="text/plain"):
    unverified = ssl._create_unverified_context()  # it is the engine that is tried
    request = urllib.request.Request(address, data, {"Content-Type": kind}, method=method)
    with urllib.request.urlopen(request, timeout=60, context=unverified) as answer:
        return answer


@contextlib.asynccontextmanager
async def proxy(port):
    """A forward proxy (RFC 9110, 9.3.6) for which every host is the one at ``port``: its port and log."""
    seen = []

    async def serve(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            seen.append(head.split(b"\r\n")[0].decode())
            inward, outward = await asyncio.open_connection("127.0.0.1", port)
            if head.startswith(b"CONNECT "):
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                outward.write(head)
            await asyncio.gather(pass_on(reader, outward), pass_on(inward, writer))
        writer.close()

    async def pass_on(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], seen
