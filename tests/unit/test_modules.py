import gzip
import lzma

import kernels
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import ImageError
from atoll.image import modules
from atoll.image.modules import Module, Tree


def tree(depends, *, builtin=(), before=None):
    before = before or {}
    return Tree(
        {
            name: Module(name, f"kernel/{name}.ko", tuple(needs), tuple(before.get(name, ())))
            for name, needs in depends.items()
        },
        tuple(f"kernel/{name}.ko" for name in builtin),
    )


def names(plan):
    return [module.name for module in plan]


def test_what_a_module_needs_is_loaded_before_it():
    made = tree({"a": ["b", "c"], "b": ["c"], "c": []})
    assert names(modules.plan(made, ["a"])) == ["c", "b", "a"]


def test_a_module_that_two_need_is_loaded_once():
    made = tree({"a": ["c"], "b": ["c"], "c": []})
    assert names(modules.plan(made, ["a", "b", "a"])) == ["c", "a", "b"]


def test_what_is_compiled_in_is_not_loaded():
    made = tree({"a": ["crc"]}, builtin=["crc"])
    assert names(modules.plan(made, ["a", "crc"])) == ["a"]


def test_a_dash_in_a_name_is_an_underscore():
    made = tree({"virtio_rng": ["hw_core"], "hw_core": []})
    assert names(modules.plan(made, ["virtio-rng"])) == ["hw_core", "virtio_rng"]


def test_a_missing_module_is_named_with_what_needs_it():
    with pytest.raises(ImageError, match="no module b, which a needs") as caught:
        modules.plan(tree({"a": ["b"]}), ["a"])
    assert caught.value.code == "image.modules"


def test_without_a_list_of_what_is_compiled_in_a_missing_module_counts_as_compiled_in():
    assert names(modules.plan(Tree({}), ["virtio_blk"])) == []


def test_a_circle_is_named():
    with pytest.raises(ImageError, match="circle: a -> b -> a"):
        modules.plan(tree({"a": ["b"], "b": ["a"]}), ["a"])
    with pytest.raises(ImageError, match="circle: a -> a"):
        modules.plan(tree({"a": ["a"]}), ["a"])


def test_a_soft_dependency_is_loaded_first_if_it_can_be():
    made = tree({"a": [], "s": []}, before={"a": ["s", "nowhere"]})
    assert names(modules.plan(made, ["a"])) == ["s", "a"]


def test_a_soft_dependency_that_leads_in_a_circle_is_no_failure():
    made = tree({"a": [], "s": ["a"]}, before={"a": ["s"]})
    assert names(modules.plan(made, ["a"])) == ["a"]


GRAPHS = st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.sampled_from("abcdefghi"), max_size=4))


@given(GRAPHS, st.lists(st.sampled_from("abcdefghi"), max_size=4))
def test_any_graph_gives_a_right_order_or_a_named_error(depends, wanted):
    made = tree(depends, builtin=["i"])
    try:
        order = names(modules.plan(made, wanted))
    except ImageError as error:
        assert error.code == "image.modules"  # noqa: PT017 - either outcome is right
        return
    assert len(order) == len(set(order))
    for position, name in enumerate(order):
        assert all(needed == "i" or needed in order[:position] for needed in depends[name])
    assert all(name == "i" or name in order for name in wanted)


def test_modules_dep_is_read_with_the_load_order_of_modprobe():
    found = modules.parse_dep(
        "kernel/a.ko: kernel/x-b.ko.xz kernel/c.ko\nkernel/x-b.ko.xz: kernel/c.ko\nkernel/c.ko:\n"
    )
    assert found["a"].depends == ("c", "x_b")
    assert found["x_b"].path == "kernel/x-b.ko.xz"
    assert names(modules.plan(Tree(found, ()), ["a"])) == ["c", "x_b", "a"]


@given(st.text())
def test_any_text_is_no_danger_as_modules_dep(text):
    modules.parse_dep(text)


def test_a_tree_fresh_from_a_package_is_read_from_its_modules(tmp_path):
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/a.ko").write_bytes(
        kernels.module("a", depends=["b-c"], extra=["softdep=ignored pre: d post: e", "alias=pci:v1"])
    )
    (tmp_path / "kernel/b-c.ko.xz").write_bytes(lzma.compress(kernels.module("b-c")))
    (tmp_path / "kernel/d.ko.gz").write_bytes(gzip.compress(kernels.module("d")))
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    (tmp_path / "modules.builtin.modinfo").write_bytes(b"ext4.license=GPL\0ext4.alias=fs-ext4\0")
    found = modules.read_tree(tmp_path)
    assert found.modules["a"] == Module("a", "kernel/a.ko", ("b_c",), ("d",), ("e",), ("pci:v1",))
    assert names(modules.plan(found, ["a", "ext4"])) == ["d", "b_c", "a"]
    assert found.builtin_aliases == (("fs-ext4", "ext4"),)
    assert not found.indexed


def test_a_tree_that_depmod_has_seen_is_read_from_its_index(tmp_path):
    (tmp_path / "modules.dep").write_text("kernel/a.ko:\n")
    (tmp_path / "modules.dep.bin").write_bytes(b"")
    found = modules.read_tree(tmp_path)
    assert found.indexed
    assert set(found.modules) == {"a"}


def test_a_truncated_module_is_named():
    whole = kernels.module("a", depends=["b"])
    for size in range(len(whole)):
        with pytest.raises(ImageError):
            modules.modinfo(whole[:size])


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_danger_as_a_module(data):
    for prefix in (b"", b"\x7fELF\x02\x01"):
        try:
            modules.modinfo(prefix + data)
        except ImageError as error:
            assert error.code == "image.modules"  # noqa: PT017 - either outcome is right


MARK = b"~Module signature appended~\n"


@given(st.binary(max_size=200), st.binary(max_size=100))
def test_an_appended_signature_is_taken_off_and_nothing_else(module, signature):
    signed = b"\x7fELF" + module + signature + bytes(8) + len(signature).to_bytes(4, "big") + MARK
    assert modules.without_signature(signed) == b"\x7fELF" + module


@given(st.binary(max_size=60))
def test_what_only_looks_signed_is_left_as_it_is_or_cut_at_its_own_size(module):
    assert modules.without_signature(module) == module
    stripped = modules.without_signature(module + MARK)
    assert (module + MARK).startswith(stripped)
