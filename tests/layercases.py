"""Layers that are hard to get right, and layers that mean harm."""

from __future__ import annotations

import io
import os
import tarfile

import imagetools
from imagetools import entry, gnu_sparse, layer, pax, pax_sparse, raw

CAPABILITY = bytes.fromhex("0100000200040000" + 12 * "00")
LONG = "a-directory-of-a-long-name/" * 6
DIRECTORY = "directory"
BASE = layer(
    entry("etc/", kind=DIRECTORY, mtime=1_500_000_000),
    entry("etc/passwd", b"root\n"),
    entry("etc/deep/", kind=DIRECTORY, mtime=1_500_000_001),
    entry("etc/deep/file", b"below"),
    entry("etc/deep/other", b"below, too"),
    entry("var/", kind=DIRECTORY),
    entry("var/data", b"data" * 2000),
)

#: Images that are fine, as layers from the lowest up.
HONEST = {
    "plain": [BASE],
    "whiteout-of-file": [BASE, layer(entry("etc/.wh.passwd"))],
    "whiteout-of-directory": [BASE, layer(entry("etc/.wh.deep"))],
    "whiteout-of-nothing": [BASE, layer(entry("etc/.wh.nothing"), entry("nowhere/.wh.at-all"))],
    "whiteout-then-again": [BASE, layer(entry("etc/.wh.passwd")), layer(entry("etc/passwd", b"new"))],
    "whiteout-beside-file": [BASE, layer(entry("etc/.wh.deep"), entry("etc/deep2", b"x"))],
    "whiteout-at-top": [BASE, layer(entry(".wh.etc"))],
    "whiteout-of-hard-link": [
        layer(entry("one", b"x"), entry("two", kind="link", link="one")),
        layer(entry(".wh.one")),
    ],
    "opaque-before": [
        BASE,
        layer(entry("etc/", kind=DIRECTORY), entry("etc/.wh..wh..opq"), entry("etc/new", b"new")),
    ],
    "opaque-after": [
        BASE,
        layer(entry("etc/", kind=DIRECTORY), entry("etc/new", b"new"), entry("etc/.wh..wh..opq")),
    ],
    "opaque-deep": [
        BASE,
        layer(
            entry("etc/", kind=DIRECTORY),
            entry("etc/deep/", kind=DIRECTORY, mode=0o700),
            entry("etc/deep/new", b"new"),
            entry("etc/deep/.wh..wh..opq"),
        ),
    ],
    "hard-links": [
        layer(
            entry("a", b"x" * 5000, uid=5, mode=0o600),
            entry("b", kind="link", link="a"),
            entry("d/", kind=DIRECTORY),
            entry("d/c", kind="link", link="b"),
            entry("s", kind="symlink", link="a"),
            entry("t", kind="link", link="s"),
        )
    ],
    "hard-link-to-lower": [
        BASE,
        layer(entry("etc/", kind=DIRECTORY), entry("again", kind="link", link="etc/passwd")),
    ],
    "nodes": [
        layer(
            entry("dev/", kind=DIRECTORY),
            entry("dev/null", kind="char", device=(1, 3), mode=0o666),
            entry("dev/sda", kind="block", device=(259, 70_000), mode=0o640, gid=6),
            entry("pipe", kind="fifo", mode=0o622),
        )
    ],
    "xattrs": [
        layer(
            entry("program", b"x", mode=0o755, xattrs={"security.capability": CAPABILITY, "user.a": b"1"}),
            entry("d/", kind=DIRECTORY, xattrs={"user.binary": bytes(range(256)), "trusted.t": b"t"}),
            entry("empty", xattrs={"user.empty": b""}),
            entry("same-1", xattrs={"user.shared": b"the same" * 20}),
            entry("same-2", xattrs={"user.shared": b"the same" * 20}),
        )
    ],
    "xattrs-replaced": [
        layer(
            entry("f", b"1", xattrs={"user.a": b"1"}), entry("d/", kind=DIRECTORY, xattrs={"user.a": b"1"})
        ),
        layer(
            entry("f", b"2", xattrs={"user.b": b"2"}), entry("d/", kind=DIRECTORY, xattrs={"user.b": b"2"})
        ),
    ],
    "modes": [
        layer(
            entry("tmp/", kind=DIRECTORY, mode=0o1777),
            entry("su", b"x", mode=0o4755),
            entry("wall", b"x", mode=0o2755, gid=5),
            entry("none", b"x", mode=0),
            entry("shut/", kind=DIRECTORY, mode=0),
            entry("shut/file", b"x"),
            entry("link", kind="symlink", link="su", uid=7, gid=8),
        )
    ],
    "owners": [
        layer(
            entry("small", uid=1000, gid=100),
            entry("large", uid=70_000, gid=4_000_000_000),
            entry("d/", kind=DIRECTORY, uid=65_536, gid=65_535),
        )
    ],
    "times": [
        layer(
            entry("nanoseconds", mtime="1600000000.123456789"),
            entry("before", mtime="-1000000000"),
            entry("before-and-parts", mtime="-5.25"),
            entry("far", mtime="9000000000"),
            entry("epoch", mtime=0),
            entry("d/", kind=DIRECTORY, mtime="1600000000.5"),
            entry("d/inside", mtime=5),
            entry("link", kind="symlink", link="x", mtime="1234567890.000000001"),
        )
    ],
    "pax-names": [
        layer(
            entry(f"{LONG}file", b"x"),
            entry(f"{LONG}link", kind="symlink", link=f"{LONG}file"),
            entry(f"{LONG}hard", kind="link", link=f"{LONG}file"),
            entry("ümläut-日本語", b"x"),
        )
    ],
    "gnu-names": [
        layer(
            entry(f"{LONG}file", b"x", form=tarfile.GNU_FORMAT),
            entry(f"{LONG}link", kind="symlink", link=f"{LONG}file", form=tarfile.GNU_FORMAT),
        )
    ],
    "longest-name": [layer(entry("n" * 255, b"x"), entry("e" * 255 + "/", kind=DIRECTORY))],
    "bytes-in-names": [
        layer(
            raw(b"latin-\xe4\xf6\xfc", b"x"),
            raw(b"new\nline", b"x"),
            raw(b"star*\\", b"x"),
            raw(b" space ", b"x"),
        )
    ],
    "ustar-prefix": [layer(raw(b"file", b"x", prefix=b"a/b/c"))],
    "old-tar": [
        layer(raw(b"v7", b"x", magic=bytes(8), kind=b"\0"), raw(b"dir/", magic=bytes(8), kind=b"\0"))
    ],
    "base-256": [
        layer(
            raw(b"size", b"x" * 700, size=b"\x80" + (700).to_bytes(11, "big")),
            raw(b"owner", b"", uid=b"\x80" + (3_000_000).to_bytes(7, "big")),
            raw(b"before", b"", mtime=(256**12 - 1000).to_bytes(12, "big")),
        )
    ],
    "no-parents": [layer(entry("a/b/c/file", b"x"), entry("a/b/", kind=DIRECTORY, mode=0o700, uid=3))],
    "dots-and-slashes": [
        layer(
            entry("./", kind=DIRECTORY, mode=0o750, mtime=1_400_000_000),
            entry("./a/", kind=DIRECTORY),
            entry("./a/./b", b"x"),
            entry("a//c", b"x"),
        )
    ],
    "twice": [
        layer(
            entry("f", b"first", uid=1, xattrs={"user.a": b"1"}),
            entry("f", b"second"),
            entry("d/", kind=DIRECTORY, mode=0o700),
            entry("d/inside", b"x"),
            entry("d/", kind=DIRECTORY, mode=0o711, uid=4),
        )
    ],
    "directory-to-file": [BASE, layer(entry("etc/deep", b"now a file"))],
    "file-to-directory": [BASE, layer(entry("var/data/", kind=DIRECTORY), entry("var/data/x", b"x"))],
    "link-to-directory": [
        layer(entry("l", kind="symlink", link="var"), entry("var/", kind=DIRECTORY)),
        layer(entry("l/", kind=DIRECTORY), entry("l/file", b"x")),
    ],
    "directory-to-link": [BASE, layer(entry("etc/deep", kind="symlink", link="/var"))],
    "file-to-node": [BASE, layer(entry("var/data", kind="char", device=(1, 5)))],
    "through-a-link": [
        layer(entry("usr/lib/", kind=DIRECTORY), entry("lib", kind="symlink", link="usr/lib")),
        layer(entry("lib/file", b"through"), entry("lib/deep/file", b"through")),
    ],
    "through-an-absolute-link": [
        layer(
            entry("real/", kind=DIRECTORY),
            entry("d/", kind=DIRECTORY),
            entry("d/way", kind="symlink", link="/real"),
        ),
        layer(entry("d/way/file", b"within")),
    ],
    "through-a-link-upward": [
        layer(entry("real/", kind=DIRECTORY), entry("way", kind="symlink", link="../../../real")),
        layer(entry("way/file", b"within")),
    ],
    "whiteout-through-a-link": [
        layer(
            entry("usr/lib/", kind=DIRECTORY),
            entry("usr/lib/f", b"x"),
            entry("lib", kind="symlink", link="usr/lib"),
        ),
        layer(entry("lib/.wh.f")),
    ],
    "sizes": [
        layer(
            *(
                entry(f"of-{size}", bytes([size % 251]) * size)
                for size in (0, 1, 4095, 4096, 4097, 8192, 70_000)
            )
        )
    ],
    "many-in-a-directory": [layer(*(entry(f"d/a-file-of-some-number-{number:04}") for number in range(700)))],
    "named-like-a-magic": [layer(entry("BZh-is-no-bzip2", b"x")), layer(raw(b"]", b"x"))],
    "empty-layers": [layer(), BASE, layer()],
}

#: Those that fit upon one another, as many things at once.
TOGETHER = (
    *("plain", "hard-links", "nodes", "xattrs", "modes", "owners"),
    *("times", "pax-names", "bytes-in-names", "opaque-deep", "sizes", "many-in-a-directory"),
)

_PIECES = [(8192, b"middle" * 256), (50_000, b"end")]
_SPARSE = bytes(8192) + b"middle" * 256 + bytes(50_000 - 8192 - 1536) + b"end"

#: Images that umoci does not take, or takes otherwise than all engines, with the contents of their files.
ALONE = {
    "gnu-sparse": (
        [layer(gnu_sparse(b"sparse", _PIECES, 50_003), entry("after", b"x"))],
        {b"sparse": _SPARSE, b"after": b"x"},
    ),
    "pax-sparse": (
        [layer(pax_sparse(b"sparse", _PIECES, 50_003), entry("after", b"x"))],
        {b"sparse": _SPARSE, b"after": b"x"},
    ),
    "global-header": (
        [layer(raw(b"pax_global_header", b"19 comment=abcdefg\n", kind=b"g"), entry("f", b"x"))],
        {b"f": b"x"},
    ),
    "contiguous": ([layer(raw(b"contiguous", b"x" * 600, kind=b"7"))], {b"contiguous": b"x" * 600}),
    "hard-link-then-target-replaced": (
        [layer(entry("a", b"old"), entry("b", kind="link", link="a")), layer(entry("a", b"new"))],
        {b"a": b"new", b"b": b"old"},
    ),
    "whiteouts-of-no-name": (
        [layer(entry("d/f", b"x")), layer(entry("d/.wh."), entry("d/.wh..."), entry("d/.wh.."))],
        {b"d/f": b"x"},
    ),
}

#: Directories that umoci dates anew when it writes into them through a link.
DATED_ANEW = {"through-a-link": {b"usr/lib", b"usr/lib/deep"}}

#: Images that are refused, as layers from the lowest up, with what the error names.
HOSTILE = {
    "upward": ([layer(entry("../evil", b"x"))], "evil"),
    "absolute": ([layer(entry("/etc/passwd", b"evil"))], "/etc/passwd"),
    "upward-within": ([layer(entry("a/../../evil", b"x"))], "evil"),
    "hard-link-upward": ([layer(entry("evil", kind="link", link="../../etc/passwd"))], "evil"),
    "hard-link-to-nothing": ([layer(entry("evil", kind="link", link="nothing"))], "evil"),
    "hard-link-to-directory": (
        [layer(entry("d/", kind=DIRECTORY), entry("evil", kind="link", link="d"))],
        "evil",
    ),
    "hard-link-to-itself": ([layer(entry("evil", kind="link", link="evil"))], "evil"),
    "cycle": (
        [
            layer(
                entry("a", kind="symlink", link="b"),
                entry("b", kind="symlink", link="a"),
                entry("a/evil", b"x"),
            )
        ],
        "evil",
    ),
    "long-name": ([layer(entry("n" * 300, b"evil"))], "nnn"),
    "long-path": ([layer(entry("directory/" * 600 + "evil", b"x"))], "directory"),
    "below-a-file": ([layer(entry("file", b"x"), entry("file/evil", b"x"))], "evil"),
    "nul-in-pax-name": ([layer(pax(path=b"evil\0name") + raw(b"x", b"x"))], ""),
    "negative-size": ([layer(raw(b"evil", size=b"\xff" * 12))], ""),
    "huge-size": ([layer(raw(b"evil", size=b"\x80" + b"\xff" * 11))], ""),
    "size-beyond-the-end": ([layer(entry("evil", b"x", size=1 << 20))], ""),
    "no-number": ([layer(raw(b"evil", size=b"not-a-size!!"))], ""),
    "wrong-sum": ([layer(entry("good"), raw(b"evil", checksum=b"000001\0 "))], ""),
    "unknown-kind": ([layer(raw(b"evil", kind=b"Z"))], "evil"),
    "huge-header": ([layer(raw(b"pax", kind=b"x", size=b"77777777777\0"))], ""),
    "cut-off": ([layer(entry("file", b"x" * 5000))[:2000]], ""),
    "empty-link": ([layer(raw(b"evil", kind=b"2"))], "evil"),
    "huge-owner": ([layer(pax(uid=b"99999999999999") + raw(b"evil"))], "evil"),
    "bad-pax-record": ([layer(raw(b"pax", b"99 path=evil\n", kind=b"x"), raw(b"x"))], ""),
    "huge-sparse": ([layer(gnu_sparse(b"evil", [((1 << 33) - 4096, b"x")], 1 << 33))] * 9, ""),
}

#: Names that lead elsewhere on a host that would follow them, and are within the image here.
CONFINED = {
    "link-then-through-it": (
        [
            layer(
                entry("a", kind="symlink", link="/etc"),
                entry("etc/", kind=DIRECTORY),
                entry("a/passwd", b"evil"),
            )
        ],
        b"etc/passwd",
    ),
    "hard-link-absolute": (
        [layer(entry("etc/passwd", b"own"), entry("again", kind="link", link="/etc/passwd"))],
        b"again",
    ),
}


def write_image(directory, layers):
    """An OCI layout of them."""
    return imagetools.write_files(directory, imagetools.layout_files(layers))


def implied(layers):
    """Paths of directories that no entry names: whoever unpacks dates them as he likes."""
    named, seen = set(), set()
    for one in layers:
        with tarfile.open(fileobj=io.BytesIO(one), errors="surrogateescape") as tar:
            for member in tar:  # of honest ones
                path = os.path.normpath(member.name).lstrip("/")
                named.add("" if path == "." else path)
                parts = path.split("/")
                seen |= {"/".join(parts[:count]) for count in range(len(parts))}
    return {os.fsencode(path) for path in {"", *seen} - named}
