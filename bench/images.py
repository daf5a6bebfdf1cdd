"""An image from a registry to a root, beside skopeo, umoci and mkfs.erofs by hand; and what starts cost.

Both lanes take turns and pull the same image from the same registry on this host's loopback. By hand the
image is copied to a layout, unpacked to a directory, and packed; each lane ends with a file that a VM boots.
The image is Debian's root in three layers: the system, the interpreter of this host, and a layer that changes
and removes files of both.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import common

from atoll import runtime
from atoll.config import load

PROGRAMS = ("skopeo", "umoci", "mkfs.erofs", "docker-registry")
NAME = "bench/image:1"


def main(runs: int) -> None:
    """All figures of images of layers."""
    print(f"images: load of this host {os.getloadavg()[0]:.1f}")
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        print(f"  left out, not found: {', '.join(lacking)}")
        print("  apt install skopeo umoci erofs-utils docker-registry")
        return
    with tempfile.TemporaryDirectory(prefix="atoll-", dir="/var/tmp") as place:
        _compare(Path(place), max(3, runs // 2))


def _compare(place: Path, runs: int) -> None:
    layout = place / "layout"
    sizes = _make(layout)
    print(f"  image: {sizes[0] >> 20} MiB in three layers, {sizes[1] >> 20} MiB compressed")
    (place / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    with _registry(place / "registry") as port:
        reference = f"127.0.0.1:{port}/{NAME}"
        _skopeo(place, "copy", "--dest-tls-verify=false", f"oci:{layout}:1", f"docker://{reference}")
        own, hand, limit = [], [], []
        for number in range(runs):
            hand.append(_by_hand(place, f"hand{number}", reference))
            own.append(_own(place, f"own{number}", reference))
            limit.append(_read(port))
        mine = common.line("atoll image pull", own)
        common.line("skopeo copy, umoci unpack, mkfs.erofs", hand)
        least = common.line("the layers' bytes read and summed (curl's part)", limit)
        ratio = statistics.median(one / other for one, other in zip(own, hand, strict=True))
        common.verdict("pull and unpack against skopeo, umoci and mkfs.erofs", ratio, 1.0)
        print(f"  => against reading and summing alone: {mine / least:.2f}")
        _starts(place, reference, 25)


def _own(place: Path, name: str, reference: str) -> float:
    home = place / name
    begun = time.perf_counter()
    _atoll(home, "image", "pull", "--quiet", reference)
    elapsed = time.perf_counter() - begun
    shutil.rmtree(home)
    return elapsed


def _by_hand(place: Path, name: str, reference: str) -> float:
    home = place / name
    home.mkdir()
    begun = time.perf_counter()
    _skopeo(place, "copy", "--src-tls-verify=false", f"docker://{reference}", f"oci:{home}/oci:1")
    subprocess.run(
        ["umoci", "unpack", "--image", f"{home}/oci:1", home / "bundle"], check=True, capture_output=True
    )
    words = ["mkfs.erofs", "--quiet", home / "root.erofs", home / "bundle/rootfs"]
    subprocess.run(words, check=True, capture_output=True)
    elapsed = time.perf_counter() - begun
    shutil.rmtree(home)
    return elapsed


def _read(port: int) -> float:
    """What no lane can do without: each layer's bytes over the loopback, and their digest."""
    begun = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    repository, tag = NAME.split(":")
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    connection.request("GET", f"/v2/{repository}/manifests/{tag}", headers=accept)
    manifest = json.loads(connection.getresponse().read())
    for layer in manifest["layers"]:
        connection.request("GET", f"/v2/{repository}/blobs/{layer['digest']}")
        answer, digest = connection.getresponse(), hashlib.sha256()
        while data := answer.read(1 << 18):
            digest.update(data)
        assert f"sha256:{digest.hexdigest()}" == layer["digest"]
    connection.close()
    return time.perf_counter() - begun


def _starts(place: Path, reference: str, runs: int) -> None:
    """A sandbox of an image that is here, beside one of Atoll's own: from their templates."""
    home = place / "starts"
    config = load().config
    runtime.ensure_image(config, "debian")
    (home / "data/images").mkdir(parents=True)
    for image in config.paths.images.glob("debian+*"):
        shutil.copytree(image, home / "data/images" / image.name)
    shutil.copytree(config.paths.kernels, home / "cache/kernels")
    _atoll(home, "image", "pull", "--quiet", reference)
    samples: dict[str, list[float]] = {reference: [], "debian": []}
    for name in samples:
        _atoll(home, "run", "--quiet", name, "--", "true")  # makes the template
    for number in range(runs):
        order = list(samples.items())
        for name, found in order if number % 2 else order[::-1]:
            begun = time.perf_counter()
            _atoll(home, "run", "--quiet", name, "--", "true")
            found.append(1000 * (time.perf_counter() - begun))
    common.line("atoll run of the image, again", samples[reference], "ms", 0)
    common.line("atoll run debian", samples["debian"], "ms", 0)
    pairs = zip(samples[reference], samples["debian"], strict=True)
    added = statistics.median(one - other for one, other in pairs)
    common.verdict("an image of layers adds to a start, ms", added, 20)


def _atoll(home: Path, *words: str) -> None:
    places = {"ATOLL_DATA_DIR": str(home / "data"), "ATOLL_CACHE_DIR": str(home / "cache")}
    program = Path(sys.executable).with_name("atoll")
    nothing = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    subprocess.run([program, *words], env={**os.environ, **places}, check=True, **nothing)


def _skopeo(place: Path, *words: str) -> None:
    argv = ["skopeo", "--policy", place / "policy.json", *words]
    subprocess.run(argv, check=True, capture_output=True)


@contextlib.contextmanager
def _registry(place: Path) -> Iterator[int]:
    place.mkdir()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    settings = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(place / "kept")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (place / "settings.json").write_text(json.dumps(settings))
    child = subprocess.Popen(
        ["docker-registry", "serve", place / "settings.json"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline, "the registry does not come up"
            time.sleep(0.05)
        yield port
    finally:
        child.kill()
        child.wait()


# The image.


def _make(layout: Path) -> tuple[int, int]:
    """Write the image as a layout; bytes of its layers plain and compressed."""
    config = load().config
    image = runtime.ensure_image(config, "debian")
    with tempfile.TemporaryDirectory(prefix="atoll-", dir="/var/tmp") as scratch:
        root = Path(scratch) / "root"
        subprocess.run(["fsck.erofs", f"--extract={root}", image.root], check=True, capture_output=True)
        system = _tar(root, ".")
    library = Path(os.__file__).parent
    interpreter = _tar(library.parent, library.name)
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    plain = [system, interpreter, _change()]
    kind = "application/vnd.oci.image.layer.v1.tar+gzip"
    described = [_put(blobs, gzip.compress(data, 6), kind) for data in plain]
    ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in plain]
    settings = {"architecture": "amd64" if os.uname().machine == "x86_64" else "arm64", "os": "linux"}
    document = {**settings, "config": {"Cmd": ["/bin/sh"]}, "rootfs": {"type": "layers", "diff_ids": ids}}
    kind = "application/vnd.oci.image.config.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _put(blobs, json.dumps(document).encode(), kind),
        "layers": described,
    }
    top = _put(blobs, json.dumps(manifest).encode(), manifest["mediaType"])
    top["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return sum(map(len, plain)), sum(one["size"] for one in described)


def _put(blobs: Path, data: bytes, kind: str) -> dict[str, object]:
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"mediaType": kind, "digest": f"sha256:{name}", "size": len(data)}


def _tar(directory: Path, name: str) -> bytes:
    return subprocess.run(
        ["tar", "-c", "--numeric-owner", "--exclude=__pycache__", "-C", directory, name],
        check=True,
        capture_output=True,
    ).stdout


def _change() -> bytes:
    """A layer over the two: changed files, removed ones, new ones."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(500):
            header = tarfile.TarInfo(f"opt/app/file{number}")
            header.size = 2000
            tar.addfile(header, io.BytesIO(bytes([number % 256]) * 2000))
        for name in ("usr/share/.wh.doc", "etc/.wh.motd"):
            tar.addfile(tarfile.TarInfo(name))
        header = tarfile.TarInfo("etc/issue")
        header.size = 4
        tar.addfile(header, io.BytesIO(b"new\n"))
    return file.getvalue()
