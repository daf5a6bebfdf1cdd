"""Small images for registries, and who is let in there."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import time

from dockers import layer_of
from meddling import TokenServer

from atoll.image.oci import documents
from atoll.image.oci.documents import Platform
from atoll.image.oci.source import LayerSource, Offered
from atoll.image.registry.credentials import Keyring
from atoll.image.registry.patience import Patience

PLATFORM = Platform("amd64", "linux")
QUICK = Patience(attempts=4, pause=0.01, longest=0.02, asked=2, connect=5, probe=5, stall=0.5)
SIZE = 300_000
NOISE = random.Random(8).randbytes(SIZE)
#: anna's password, `open sesame`, by bcrypt.
HTPASSWD = "anna:$2b$04$xerRnL8fy9w3NDb2N4Y9PeeZwyQFOEfO/.vn8J7CVq6wDx0GFjpFW\n"


def layer_source(data):
    return LayerSource(open=lambda: io.BytesIO(data))


def image(*layers, architecture="amd64"):
    """An image of plain tars that nobody has made a manifest for."""
    diff_ids = [
        documents.digest_of(gzip.decompress(one) if one[:2] == b"\x1f\x8b" else one) for one in layers
    ]
    config = {"architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/sh"]}}
    config["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    return Offered(layers=tuple(map(layer_source, layers)), config=json.dumps(config).encode())


LAYERS = (gzip.compress(layer_of("noise", NOISE), mtime=0), layer_of("words", b"some words\n" * 100))


def nobody(place):
    return Keyring({}, home=place / "nobody")


def keyring(place, entries, **more):
    """The credentials of a user with such a file of Docker's."""
    home = place / f"home-{time.monotonic_ns()}"
    (home / ".docker").mkdir(parents=True)
    (home / ".docker" / "config.json").write_text(json.dumps({"auths": entries, **more}))
    return Keyring({}, home=home)


def login(place, port, user=TokenServer.USER, secret=TokenServer.SECRET):
    auth = base64.b64encode(f"{user}:{secret}".encode()).decode()
    return keyring(place, {f"127.0.0.1:{port}": {"auth": auth}})


def read(layer, size=10_000):
    with layer.open() as stream:
        return b"".join(iter(lambda: stream.read(size), b""))
