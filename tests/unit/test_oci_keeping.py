"""Images of layers in the store: whole or not there, made again byte by byte, never had twice."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import store
from atoll.errors import AtollError, ImageError, StoreError
from atoll.image import catalog
from atoll.image.manifest import Listed, load, touch
from atoll.image.oci import documents, keeping, names, offering, pruning, verifying
from atoll.image.oci.reference import parse
from atoll.image.oci.runconfig import RunConfig
from atoll.image.oci.source import LayerSource, Offered
from atoll.paths import Paths

PLATFORM = documents.platform_of("x86_64")
REFERENCE = parse("own/app:1")

contents = st.dictionaries(
    st.text("abc\u00e9", min_size=1, max_size=150), st.binary(max_size=9000), min_size=1, max_size=8
)


@pytest.fixture
def home(tmp_path):
    return Paths(tmp_path / "data", tmp_path / "cache")


def packed(files, kind=tarfile.PAX_FORMAT):
    """A tar of some files, and its directory entry."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size, header.mtime = len(content), 1_700_000_000
            tar.addfile(header, io.BytesIO(content))
    return out.getvalue()


def digest(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(data, **fields):
    return LayerSource(
        **{"open": lambda: io.BytesIO(data), "digest": digest(data), "size": len(data), **fields}
    )


def image_of(*tars):
    """What is offered of an image with a configuration."""
    config = documents.ImageConfig(
        architecture="amd64",
        os="linux",
        config=RunConfig(cmd=("/bin/sh",)),
        rootfs=documents.RootFs("layers", tuple(map(digest, tars))),
    )
    data = documents.encode(config)
    squeezed = [gzip.compress(tar) for tar in tars]
    manifest = documents.Manifest(
        schema_version=2,
        config=documents.Descriptor(documents.CONFIG, digest(data), len(data)),
        layers=tuple(documents.Descriptor(documents.LAYER_GZIP, digest(one), len(one)) for one in squeezed),
    )
    layers = tuple(map(layer, squeezed))
    return Offered(layers=layers, config=data, manifest=documents.encode(manifest))


def add(home, offered, **options):
    return keeping.add(home, offered, name="own/app:1", platform=PLATFORM, **options)


def seen(home):
    """What others see of the store."""
    if not home.images.exists():
        return []
    return sorted(path.name for path in home.images.iterdir() if not path.name.startswith("."))


def left(home):
    """All that there is in it but locks."""
    return sorted(path.name for path in home.images.iterdir() if not path.name.endswith(".lock"))


def tar_of(source):
    with source.open() as stream:
        return b"".join(iter(lambda: stream.read(1000), b""))


@settings(max_examples=25, deadline=None)
@given(st.lists(contents, min_size=1, max_size=3), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_each_layer_can_be_made_again(tmp_path_factory, layers, kind):
    home = Paths(tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("cache"))
    tars = [packed(files, kind) for files in layers]
    image = add(home, image_of(*tars))
    assert [tar_of(source) for source in offering.offer(image).layers] == tars
    verifying.verify(image)


def test_an_image_is_found_by_its_references_and_its_digest(home):
    offered = image_of(packed({"a": b"a"}))
    image = add(home, offered, references=[REFERENCE, parse("own/app@" + digest(offered.manifest))])
    for name in ("own/app:1", f"docker.io/own/app@{digest(offered.manifest)}"):
        assert catalog.find(home, name, architecture="x86_64").directory == image.directory
    with pytest.raises(ImageError) as caught:
        catalog.find(home, "own/app:1", architecture="aarch64")
    assert caught.value.code == "image.missing"
    catalog.remove(home, "own/app:1", architecture="x86_64")
    assert catalog.find(home, f"own/app@{digest(offered.manifest)}", architecture="x86_64")
    catalog.remove(home, f"own/app@{digest(offered.manifest)}", architecture="x86_64")
    assert seen(home) == []
    assert not names.names(home)


def test_a_layer_that_is_here_is_not_had_again(home):
    def never():
        raise AssertionError

    shared = packed({"shared": b"s" * 10_000, "holes": bytes(5000)})
    first = add(home, image_of(shared))
    offered = image_of(packed({"below": b"b"}), shared)
    layers = (offered.layers[0], layer(gzip.compress(shared), open=never))
    second = add(home, Offered(layers=layers, config=offered.config, manifest=offered.manifest))
    verifying.verify(second)
    catalog.remove(home, f"x@{first.manifest.origin.manifest}", architecture="x86_64")
    verifying.verify(second)
    assert tar_of(offering.offer(second).layers[1]) == shared


def test_a_damaged_layer_that_is_here_is_had_again(home):
    shared = packed({"shared": b"s" * 10_000})
    first = add(home, image_of(shared))
    (first.directory / "layers/0.tape").write_bytes(b"nonsense")
    verifying.verify(add(home, image_of(shared, packed({"above": b""}))))


@pytest.mark.parametrize("place", ["content", "metadata", "superblock", "tape", "end"])
def test_damage_is_noticed(home, place):
    image = add(home, image_of(packed({"a": b"a" * 5000})))
    start = image.manifest.origin.metadata
    if place == "tape":
        tape = image.directory / "layers/0.tape"
        tape.write_bytes(tape.read_bytes()[:-3])
    elif place == "end":
        os.truncate(image.root, image.root.stat().st_size - 1)
    else:
        at = {"content": 4096 + 17, "metadata": start + 70, "superblock": 1024 + 40}[place]
        with image.root.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ImageError) as caught:
        verifying.verify(image)
    assert caught.value.code == "image.corrupt"


def changed(offered, **fields):
    return Offered(**{name: getattr(offered, name) for name in ("config", "manifest", "layers")} | fields)


def damages():
    good = packed({"a": b"a" * 50_000})
    offered = image_of(good)
    squeezed = gzip.compress(good)
    yield "digest", changed(offered, layers=(layer(squeezed, digest=digest(b"")),))
    yield "diff-id", changed(image_of(packed({"b": b""})), layers=offered.layers)
    yield "short", changed(offered, layers=(layer(squeezed[:-20], digest=digest(squeezed)),))
    yield "size", changed(offered, layers=(layer(squeezed, size=len(squeezed) + 1),))
    yield "long", changed(offered, layers=(layer(squeezed, size=len(squeezed) - 1),))
    yield "count", changed(offered, layers=())
    yield "no-tar", image_of(b"no tar at all" * 100)
    yield "junk", image_of(good + b"x" * 512)
    yield "cut", image_of(good[:20_000])


@pytest.mark.parametrize(("name", "offered"), list(damages()))
def test_what_is_not_as_it_says_leaves_nothing(home, name, offered):
    with pytest.raises(ImageError) as caught:
        add(home, offered, references=[REFERENCE])
    assert caught.value.code == "image.archive"
    assert left(home) == []
    assert not names.names(home)


def test_a_layer_that_fails_ends_the_others(home):
    class Endless:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.closed = True

        def read(self, size):
            time.sleep(0.001)
            return bytes(min(size, 512))

    endless = Endless()
    layers = (LayerSource(open=lambda: endless), layer(b"", open=lambda: contextlib.nullcontext(Broken())))
    with pytest.raises(OSError, match="gone"):
        raise_store(home, Offered(layers=layers))
    assert endless.closed
    assert left(home) == []


class Broken:
    def read(self, _size):
        raise ConnectionResetError("gone")


def raise_store(home, offered):
    """What the store says of an error of the system, or that error itself."""
    try:
        add(home, offered)
    except StoreError as error:
        raise OSError("gone") from error


class Stuck:
    """A stream of which nothing comes before it is closed."""

    def __init__(self):
        self.waits, self.closed = threading.Event(), threading.Event()

    def read(self, _size):
        self.waits.set()
        assert self.closed.wait(20)
        raise ConnectionAbortedError("closed")

    def close(self):
        self.closed.set()


def test_a_layer_that_waits_for_nothing_is_given_up_when_another_fails(home):
    stuck = Stuck()

    class Late(Broken):
        def read(self, size):
            assert stuck.waits.wait(20)
            super().read(size)

    layers = [layer(b"", open=lambda one=one: contextlib.nullcontext(one)) for one in (stuck, Late())]
    with pytest.raises(OSError, match="gone"):
        raise_store(home, Offered(layers=tuple(layers)))
    assert stuck.closed.is_set()


def test_many_that_want_one_image_make_it_once(home):
    opened = []
    data = packed({"a": b"a" * 100_000})
    offered = image_of(data)
    squeezed = gzip.compress(data)

    def begun():
        opened.append(1)
        return io.BytesIO(squeezed)

    source = changed(offered, layers=(layer(squeezed, open=begun),))
    threads = [threading.Thread(target=add, args=(home, source)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == len(seen(home)) == 1


KILLED = """
import io, sys, time
from pathlib import Path
from atoll.image.oci import documents, keeping
from atoll.image.oci.source import LayerSource, Offered
from atoll.paths import Paths

class Slow:
    def __init__(self, data): self.data = data
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def read(self, size):
        piece, self.data = self.data[:2048], self.data[2048:]
        print("read", flush=True)
        time.sleep(0.01)
        return piece

place, data, manifest, config = map(Path, sys.argv[1:])
offered = Offered(
    layers=(LayerSource(open=lambda: Slow(data.read_bytes())),),
    manifest=manifest.read_bytes(),
    config=config.read_bytes(),
)
paths = Paths(place / "data", place / "cache")
keeping.add(paths, offered, name="x", platform=documents.platform_of("x86_64"))
"""


def test_one_that_is_killed_leaves_nothing_that_is_seen(home, tmp_path):
    data = packed({"a": os.urandom(200_000)})
    offered = image_of(data)
    for name, content in (("tar", data), ("manifest", offered.manifest), ("config", offered.config)):
        (tmp_path / name).write_bytes(content)
    words = [tmp_path, tmp_path / "tar", tmp_path / "manifest", tmp_path / "config"]
    child = subprocess.Popen([sys.executable, "-c", KILLED, *words], stdout=subprocess.PIPE)
    for _ in range(30):
        assert child.stdout.readline() == b"read\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert seen(home) == []
    assert [name for name in left(home) if name.startswith(".partial-")]
    pruning.prune(home, [])
    assert left(home) == []
    verifying.verify(add(home, offered))


def test_what_is_being_made_is_not_swept(home):
    place = catalog.directory_by(home, digest(b""))
    with store.lock(catalog.lock_of(place)), store.staging(home.images, place.name) as staged:
        (staged / "root.erofs").write_bytes(b"x")
        pruning.prune(home, [])
        assert (staged / "root.erofs").exists()


def test_what_is_pruned(home):
    named = add(home, image_of(packed({"a": b"a"})), references=[REFERENCE])
    bare = add(home, image_of(packed({"b": b"b"})))
    used = add(home, image_of(packed({"c": b"c"})), references=[parse("own/used:1")])
    os.link(used.root, home.data / "root-of-a-machine")
    every = [Listed(one.directory, one, None) for one in (named, bare, used)]

    def doomed(**options):
        found = pruning.plan(every, names.names(home), now=time.time(), **options)
        return {one.directory: one.names for one in found}

    assert doomed() == {bare.directory: ()}
    assert doomed(every=True) == {bare.directory: (), named.directory: (str(REFERENCE),)}
    assert doomed(every=True, unused_for=3600) == {}
    assert pruning.prune(home, pruning.plan(every, names.names(home), every=True, now=time.time())) > 0
    assert seen(home) == [used.directory.name]
    assert [name.reference for name in names.names(home)] == ["docker.io/own/used:1"]


def test_use_is_noted(home):
    image = add(home, image_of(packed({"a": b"a"})))
    old = load(image.directory)
    later = time.time() + 100
    touch(old)
    os.utime(image.directory / "used", (later, later))
    listed = [Listed(image.directory, old, None)]
    assert pruning.plan(listed, [], now=later + 10, unused_for=50) == []
    assert len(pruning.plan(listed, [], now=later + 60, unused_for=50)) == 1


def test_a_damaged_record_of_a_reference_is_as_none(home):
    add(home, image_of(packed({"a": b"a"})), references=[REFERENCE])
    (record,) = home.references.rglob("*.json")
    record.write_bytes(b"{")
    assert names.names(home) == []
    with pytest.raises(AtollError):
        catalog.find(home, "own/app:1", architecture="x86_64")
    add(home, image_of(packed({"a": b"a"})), references=[REFERENCE])
    assert catalog.find(home, "own/app:1", architecture="x86_64")
