"""Debian packages made in memory."""

import io
import tarfile


def tar(files, mode="w:xz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            item = tarfile.TarInfo(name)
            if data is None:
                item.type, item.linkname = tarfile.SYMTYPE, "/etc"
                archive.addfile(item)
            else:
                item.size = len(data)
                archive.addfile(item, io.BytesIO(data))
    return buffer.getvalue()


def ar(members):
    out = b"!<arch>\n"
    for name, data in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}".encode() + b"`\n"
        out += data + b"\n" * (len(data) % 2)
    return out


def deb(files, *, fields="Package: p\nVersion: 1\nArchitecture: amd64\n", suffix="xz"):
    mode = {"xz": "w:xz", "gz": "w:gz", "bz2": "w:bz2"}[suffix]
    return ar(
        {
            "debian-binary": b"2.0\n",
            "control.tar.gz": tar({"./control": fields.encode()}, "w:gz"),
            f"data.tar.{suffix}": tar(files, mode),
        }
    )
