"""The indexes for modprobe, searched as kmod's libkmod-index.c does."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from atoll.image import modindex
from atoll.image.modules import Module, Tree


def read(index):
    """All (key, [(priority, value)]) of an index."""
    magic, version, root = struct.unpack_from(">III", index)
    assert (magic, version) == (0xB007F457, 0x00020001)
    found = {}

    def text(at):
        end = index.index(b"\0", at)
        return index[at:end], end + 1

    def walk(offset, key):
        at = offset & 0x0FFFFFFF
        if offset & 0x80000000:
            prefix, at = text(at)
            key += prefix
        children = []
        if offset & 0x20000000:
            first, last = index[at], index[at + 1]
            at += 2
            for byte in range(first, last + 1):
                (child,) = struct.unpack_from(">I", index, at)
                at += 4
                if child:
                    children.append((byte, child))
        if offset & 0x40000000:
            (count,) = struct.unpack_from(">I", index, at)
            at += 4
            values = []
            for _ in range(count):
                (priority,) = struct.unpack_from(">I", index, at)
                value, at = text(at + 4)
                values.append((priority, value.decode()))
            found[key.decode()] = values
        for byte, child in children:
            walk(child, key + bytes([byte]))

    walk(root, b"")
    return found


KEYS = st.text(st.sampled_from("abc*:[]-_"), min_size=1, max_size=6)


@given(st.lists(st.tuples(KEYS, st.text(st.sampled_from("xyz "), max_size=5)), max_size=20))
def test_every_entry_is_found_again_in_order(entries):
    expected = {}
    for priority, (key, value) in enumerate(entries):
        expected.setdefault(key, []).append((priority, value))
    assert read(modindex.trie(entries)) == expected


def test_modprobe_finds_dependencies_aliases_and_what_is_built_in():
    tree = Tree(
        {
            "a": Module(
                "a", "kernel/a.ko", ("b", "gone"), ("s",), ("t",), ("pci:v1-[a-b]*", "devname:net/tun")
            ),
            "b": Module("b", "kernel/b.ko", ("c",), aliases=("char-major-10-200", "devname:net/tun")),
            "c": Module("c", "kernel/c.ko"),
        },
        ("kernel/x-y.ko",),
        builtin_aliases=(("fs-ext4", "ext4"),),
    )
    files = modindex.index_files(tree)
    assert (
        files["modules.dep"]
        == b"kernel/a.ko: kernel/b.ko kernel/c.ko\nkernel/b.ko: kernel/c.ko\nkernel/c.ko:\n"
    )
    assert read(files["modules.dep.bin"])["a"] == [(0, "kernel/a.ko: kernel/b.ko kernel/c.ko")]
    assert read(files["modules.alias.bin"])["pci:v1_[a-b]*"][0][1] == "a"
    assert read(files["modules.builtin.bin"]) == {"x_y": [(0, "")]}
    assert read(files["modules.builtin.alias.bin"]) == {"fs_ext4": [(0, "ext4")]}
    assert files["modules.softdep"] == b"softdep a pre: s post: t\n"
    assert files["modules.devname"] == b"b net/tun c10:200\n"
