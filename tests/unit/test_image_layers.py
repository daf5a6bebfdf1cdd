"""What archives come to when they are laid over one another."""

import stat
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import ImageError
from atoll.image.layers import Tree, parts_of


def entry(name, kind=tarfile.REGTYPE, link="", **fields):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def directory(name):
    return entry(name, tarfile.DIRTYPE)


def symlink(name, target):
    return entry(name, tarfile.SYMTYPE, target)


def hard_link(name, target):
    return entry(name, tarfile.LNKTYPE, target)


def tree_of(*layers):
    tree = Tree()
    for number, layer in enumerate(layers):
        tree.add_layer(layer, number, whiteouts=True)
    return tree


def paths(tree):
    return [path for path, _ in tree.walk()]


def test_upper_layers_hide_and_replace_what_is_below():
    tree = tree_of(
        [directory("a"), entry("a/gone"), entry("a/kept"), directory("b"), entry("b/old"), entry("c")],
        [entry("a/.wh.gone"), directory("b"), entry("b/new"), entry("b/.wh..wh..opq"), directory("c")],
    )
    assert paths(tree) == ["a", "a/kept", "b", "b/new", "c"]
    assert tree.find("c").kind == stat.S_IFDIR


def test_a_whiteout_hides_only_what_lower_layers_have():
    tree = tree_of([entry("x")], [entry("x", size=5), entry(".wh.x")])
    assert tree.find("x").size == 5
    tree = tree_of([entry("d/sub/old")], [entry("d/sub/new"), entry("d/.wh..wh..opq")])
    assert paths(tree) == ["d", "d/sub", "d/sub/new"]


def test_outside_of_layers_a_file_may_be_called_like_a_whiteout():
    tree = Tree()
    tree.add_layer([entry("x"), entry(".wh.x")], 0, whiteouts=False)
    assert paths(tree) == [".wh.x", "x"]


def test_a_path_through_a_link_stays_in_the_tree_wherever_the_link_points():
    tree = tree_of(
        [symlink("lib", "usr/lib"), directory("usr/lib"), entry("lib/inside")],
        [symlink("up", "../../../../etc"), entry("up/passwd"), symlink("abs", "/srv/x"), entry("abs/file")],
    )
    assert {"usr/lib/inside", "etc/passwd", "srv/x/file"} <= set(paths(tree))
    assert tree.find("/up/passwd") is tree.find("etc/passwd")


def test_links_in_a_circle_end_as_an_error():
    with pytest.raises(ImageError, match="no directory"):
        tree_of([symlink("a", "b"), symlink("b", "a"), entry("a/x")])


@pytest.mark.parametrize(
    "member",
    [
        entry("/etc/passwd"),
        entry("../x"),
        entry("a/../../x"),
        entry("n" * 256),
        entry("a/" * 2100 + "x"),
        hard_link("x", "/etc/shadow"),
        hard_link("x", "../../etc/shadow"),
        hard_link("x", "not/there"),
        hard_link("x", "x"),
        hard_link("x", ""),
        symlink("x", ""),
        entry("file/below"),
        entry("x", uid=-1),
        entry("x", gid=1 << 33),
        entry("x", b"?"),
    ],
    ids=lambda member: f"{member.name[:20]}-{member.linkname}",
)
def test_an_entry_that_means_harm_is_refused(member):
    with pytest.raises(ImageError) as caught:
        tree_of([entry("file"), member])
    assert caught.value.code == "image.archive"
    assert caught.value.hint


def test_device_nodes_are_left_out_and_counted():
    tree = tree_of([entry("sda", tarfile.BLKTYPE), entry("mem", tarfile.CHRTYPE), entry("x")])
    assert paths(tree) == ["x"]
    assert tree.devices == 2


def test_a_hard_link_is_the_same_file_also_when_its_first_name_is_gone():
    tree = tree_of([entry("a", size=3), hard_link("b", "a")], [entry(".wh.a")])
    assert tree.find("b").content == (0, 0)


def test_attributes_that_the_guests_kernel_would_obey_are_dropped():
    kept = {"SCHILY.xattr.security.capability": "x", "SCHILY.xattr.user.note": "y"}
    harmful = {"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.security.selinux": "z", "path": "x"}
    tree = tree_of([entry("x", pax_headers={**kept, **harmful})])
    assert tree.find("x").xattrs == kept


@given(st.text(max_size=300))
def test_a_path_is_refused_or_has_only_plain_names(name):
    try:
        parts = parts_of(name)
    except ImageError:
        return
    assert all(part not in {"", ".", ".."} and "/" not in part and "\0" not in part for part in parts)


NAMES = st.sampled_from(["a", "b", "a/b", "a/b/c", "b/a", "../x", "a/.wh.b", "a/.wh..wh..opq", "c", "c/a"])
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
MEMBERS = st.builds(entry, NAMES, KINDS, st.sampled_from(["a", "b", "/c", "../..", "a/b", "."]))


@given(st.lists(st.lists(MEMBERS, max_size=8), max_size=4))
def test_whatever_layers_say_each_path_has_a_directory_above_it(layers):
    try:
        tree = tree_of(*layers)
    except ImageError:
        return
    seen = {}
    for path, node in tree.walk():
        assert path not in seen
        parent = path.rpartition("/")[0]
        assert not parent or seen[parent] == stat.S_IFDIR
        seen[path] = node.kind
