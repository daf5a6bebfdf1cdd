"""Images for tests: layers byte by byte, archives of every form, and what others' tools make of them."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import programs

from atoll import store
from atoll.image import apt, deb
from atoll.image.architectures import PACKAGED
from atoll.image.kernel import host_architecture

#: Libraries of the programs that a host may lack: what their files begin with, by their packages.
LIBRARIES = {
    "libgpgme11": "libgpgme.so.11",
    "libassuan0": "libassuan.so.0",
    "libdevmapper1.02.1": "libdevmapper.so.1.02.1",
}

#: Seconds for a program.
PATIENCE = 60

ARCHITECTURE = PACKAGED[host_architecture()]
END = bytes(1024)

LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"

_KINDS = {
    "file": tarfile.REGTYPE,
    "link": tarfile.LNKTYPE,
    "symlink": tarfile.SYMTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "directory": tarfile.DIRTYPE,
    "fifo": tarfile.FIFOTYPE,
}


def entry(
    name,
    data=b"",
    kind="file",
    *,
    link="",
    mode=None,
    uid=0,
    gid=0,
    mtime=1_600_000_000,
    device=(0, 0),
    xattrs=None,
    size=None,
    form=tarfile.PAX_FORMAT,
    **records,
):
    """One entry of a tar.

    Args:
        name: its path; ``os.fsdecode`` makes one of any bytes.
        data: its content.
        kind: file, link, symlink, char, block, directory or fifo; or the type's byte.
        link: of links.
        mode: 0755 for directories and 0644 for others by default.
        uid: owner; ``gid`` likewise.
        mtime: seconds, as text where they have parts.
        device: major and minor number.
        xattrs: extended attributes, bytes by name.
        size: that it claims to have, in place of that of ``data``.
        form: of tarfile.
        records: further ones of pax.
    """
    info = tarfile.TarInfo(name)
    info.type = _KINDS.get(kind, kind)
    info.linkname = link
    info.mode = mode if mode is not None else 0o755 if kind == "directory" else 0o644
    info.uid, info.gid = uid, gid
    info.devmajor, info.devminor = device
    info.size = len(data) if size is None else size
    info.pax_headers = {key.replace("__", "."): value for key, value in records.items()}
    if isinstance(mtime, str):
        info.pax_headers["mtime"] = mtime
    else:
        info.mtime = mtime
    for key, value in (xattrs or {}).items():
        info.pax_headers[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
    return info.tobuf(form, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)


def raw(name, data=b"", *, kind=b"0", link=b"", size=None, mode=b"0000644\0", uid=b"0000000\0", **fields):
    """One entry whose fields are given as bytes; ``checksum`` in ``fields`` lies."""
    length = size if size is not None else b"%011o\0" % len(data)
    block = b"".join(
        (
            name[:100].ljust(100, b"\0"),
            mode,
            uid,
            fields.get("gid", b"0000000\0"),
            length,
            fields.get("mtime", b"00000000000\0"),
            b" " * 8,
            kind,
            link[:100].ljust(100, b"\0"),
            fields.get("magic", b"ustar\x0000"),
            bytes(64),
            b"0000000\0" * 2,
            fields.get("prefix", b"").ljust(155, b"\0"),
        )
    ).ljust(512, b"\0")
    checksum = fields.get("checksum", b"%06o\0 " % sum(block))
    return block[:148] + checksum + block[156:] + data + bytes(-len(data) % 512)


def pax(**records):
    """An extended header for the next entry, of records as bytes."""
    body = b""
    for name, value in records.items():
        key = name.replace("__", ".").encode()
        rest = len(key) + len(value) + 3
        length = next(size for size in range(rest, rest + 9) if rest + len(str(size)) == size)
        body += b"%d %s=%s\n" % (length, key, value)
    return raw(b"pax", body, kind=b"x")


def gnu_sparse(name, pieces, size):
    """A sparse file in GNU's old form: ``pieces`` are (offset, data), all but the last of whole blocks."""
    data = b"".join(part for _, part in pieces)
    block = bytearray(raw(name, kind=b"S", size=b"%011o\0" % len(data), magic=b"ustar  \0"))
    at = 386
    for offset, part in pieces:
        block[at : at + 24] = b"%011o\0%011o\0" % (offset, len(part))
        at += 24
    block[483:495] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


def pax_sparse(name, pieces, size):
    """A sparse file in the form 1.0 of pax, with its map before its data."""
    numbers = [len(pieces), *(number for offset, part in pieces for number in (offset, len(part)))]
    table = b"".join(b"%d\n" % number for number in numbers)
    table += bytes(-len(table) % 512)
    data = table + b"".join(part for _, part in pieces)
    head = pax(
        GNU__sparse__major=b"1",
        GNU__sparse__minor=b"0",
        GNU__sparse__name=name,
        GNU__sparse__realsize=b"%d" % size,
    )
    return head + raw(b"GNUSparseFile.0/x", data)


def layer(*entries):
    """A tar of entries."""
    return b"".join(entries) + END


def digest_of(data):
    """Its digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def config_of(layers, **fields):
    """The configuration of an image of these plain layers."""
    return json.dumps(
        {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(one) for one in layers]},
            **fields,
        }
    ).encode()


def layout_files(layers, *, name="latest", squeeze=gzip.compress, annotations=None, **fields):
    """The files of an OCI layout with one image, by their paths."""
    return several([(layers, name, fields)], squeeze=squeeze, annotations=annotations)


def several(images, *, squeeze=gzip.compress, annotations=None, platforms=False):
    """The files of an OCI layout with images of (layers, name, fields of the configuration)."""
    blobs, listed = {}, []

    def blob(data, kind):
        digest = digest_of(data)
        blobs[f"blobs/{digest.replace(':', '/')}"] = data
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    for layers, name, fields in images:
        text = config_of(layers, **fields)
        kind = f"{LAYER}+gzip" if squeeze is gzip.compress else LAYER
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blob(text, "application/vnd.oci.image.config.v1+json"),
            "layers": [blob(squeeze(one) if squeeze else one, kind) for one in layers],
        }
        described = blob(json.dumps(manifest).encode(), MANIFEST)
        if name or annotations:
            described["annotations"] = {"org.opencontainers.image.ref.name": name, **(annotations or {})}
        if platforms:
            told = json.loads(text)
            described["platform"] = {"architecture": told["architecture"], "os": told["os"]}
        listed.append(described)
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps(index).encode(),
        **blobs,
    }


def saved_files(images):
    """What ``docker save`` wrote since 1.10, of (layers, tags); a layer that is there twice is a link."""
    files, listed, known = {}, [], {}
    for layers, tags in images:
        text = config_of(layers)
        own = f"{digest_of(text)[7:]}.json"
        paths = []
        for number, one in enumerate(layers):
            path = f"{digest_of(text + bytes([number]))[7:]}/layer.tar"
            files[path] = f"../{known[one]}" if one in known else one
            known.setdefault(one, path)
            paths.append(path)
        files[own] = text
        listed.append({"Config": own, "RepoTags": tags, "Layers": paths})
    files["manifest.json"] = json.dumps(listed).encode()
    files["repositories"] = b"{}"
    return files


def old_files(layers, tag):
    """What ``docker save`` wrote before 1.10."""
    files, parent = {}, ""
    for number, one in enumerate(layers):
        own = digest_of(b"%d" % number + one)[7:]
        told = {"id": own, "architecture": ARCHITECTURE, "os": "linux", "config": {"Cmd": [f"{number}"]}}
        files[f"{own}/VERSION"] = b"1.0"
        files[f"{own}/json"] = json.dumps({**told, "parent": parent} if parent else told).encode()
        files[f"{own}/layer.tar"] = one
        parent = own
    repository, _, label = tag.rpartition(":")
    files["repositories"] = json.dumps({repository: {label: parent}}).encode()
    return files


def archive_of(files):
    """A tar of files; text is what a link to another one says."""
    return layer(
        *(
            entry(path, kind="symlink", link=data) if isinstance(data, str) else entry(path, data)
            for path, data in files.items()
        )
    )


def write_files(directory, files):
    """The same as a directory."""
    for path, data in files.items():
        place = directory / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, str):
            place.symlink_to(data)
        else:
            place.write_bytes(data)
    return directory


def members(archive):
    """What a tar holds, by name, as bytes."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar if one.isfile()}


class Tools:
    """skopeo, umoci and buildah, with all that is theirs in a directory of the test's own.

    Args:
        paths: of the tests; the programs are kept in the cache.
        place: an empty directory.
    """

    def __init__(self, paths, place):
        self._paths = paths
        self._place = place
        for name in ("home", "run"):
            (place / name).mkdir(parents=True)
        (place / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        (place / "registries.conf").touch()
        (place / "containers.conf").touch()
        kept = f'driver="vfs"\nrunroot="{place}/run/state"\ngraphroot="{place}/kept"\n'
        (place / "storage.conf").write_text(f"[storage]\n{kept}")
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(place / "home"),
            "TMPDIR": str(place),
            "XDG_RUNTIME_DIR": str(place / "run"),
            "LD_LIBRARY_PATH": str(libraries(paths)),
            "CONTAINERS_CONF": str(place / "containers.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(place / "registries.conf"),
            "CONTAINERS_STORAGE_CONF": str(place / "storage.conf"),
        }

    def _run(self, program, *words):
        done = subprocess.run(
            [programs.packaged(self._paths, program), *map(str, words)],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=self.environment,
            cwd=self._place,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, (program, words, done.stderr.decode(errors="replace")[-2000:])
        return done.stdout.decode()

    def skopeo(self, *words):
        """skopeo's output, for images that nobody has signed."""
        return self._run("skopeo", "--policy", self._place / "policy.json", *words)

    def umoci(self, *words):
        """umoci's output."""
        return self._run("umoci", *words)

    def buildah(self, *words):
        """buildah's output; what it keeps is in the directory."""
        return self._run("buildah", *words)

    def umoci_unpack(self, layout, target, name="latest"):
        """The root that umoci makes of an image, as root with all owners, devices and attributes."""
        self.umoci("raw", "unpack", "--image", f"{layout}:{name}", target)
        return Path(target)

    def umoci_bundle(self, layout, target, name="latest"):
        """The same with all that umoci needs to repack it."""
        self.umoci("unpack", "--image", f"{layout}:{name}", target)
        return Path(target) / "rootfs"

    def built(self, layout, source, *settings, name="latest"):
        """An image by buildah in a new layout: the directory ``source`` as ``/srv``, and settings."""
        policy = ("--signature-policy", self._place / "policy.json")
        own = self.buildah("from", *policy, "scratch").strip()
        self.buildah("copy", own, source, "/srv")
        if settings:
            self.buildah("config", *settings, own)
        self.buildah("commit", *policy, "--disable-compression=false", own, f"oci:{layout}:{name}")
        self.buildah("rm", own)
        return layout


@functools.cache
def _found(name):
    cache = shutil.which("ldconfig") or "/sbin/ldconfig"
    return name in subprocess.run([cache, "-p"], check=True, capture_output=True, text=True).stdout


def libraries(paths):
    """A directory with those libraries that this host lacks."""
    place = paths.cache / "programs" / "libraries"
    place.mkdir(parents=True, exist_ok=True)
    for package, file in LIBRARIES.items():
        if not _found(file) and not (place / file).exists():
            private = apt.private_state(paths.cache, ARCHITECTURE)
            found, state = apt.lookup(package, ARCHITECTURE, private=private)
            archive = apt.fetch(found, state, paths.downloads)
            with store.staging(place, file) as staged:
                assert deb.unpack(
                    archive, staged, wanted=lambda name, file=file: f"/{file}." in name or name.endswith(file)
                )
                next(one for one in staged.rglob("*.so*") if one.is_file()).replace(place / file)
            archive.unlink()
    return place
