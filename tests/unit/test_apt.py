from atoll.image import apt, sources
from atoll.image.apt import Target

BASE = "http://mirror.example/debian/"
HOST = (
    Target(BASE, "bookworm", "main", "amd64", "Debian"),
    Target(BASE, "bookworm", "contrib", "amd64", "Debian"),
    Target(BASE, "bookworm-updates", "main", "amd64", "Debian"),
    Target("http://mirror.example/security/", "bookworm-security", "main", "amd64", "Debian"),
    Target("http://other.example/", "stable", "main", "amd64", "Somebody"),
)


def test_the_hosts_own_suite_comes_with_its_updates_and_security_fixes():
    assert apt.debian_sources(HOST, "bookworm") == (
        "deb http://mirror.example/debian bookworm main",
        "deb http://mirror.example/debian bookworm-updates main",
        "deb http://mirror.example/security bookworm-security main",
    )


def test_another_suite_comes_from_the_same_mirrors():
    assert apt.debian_sources(HOST, "trixie") == (
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
        "deb http://mirror.example/security trixie-security main",
    )


def test_sid_has_neither_updates_nor_security():
    assert apt.debian_sources(HOST, "sid") == ("deb http://mirror.example/debian sid main",)


def test_a_host_without_debian_leaves_the_choice_to_the_tool():
    assert apt.debian_sources((), "trixie") == ()
    assert apt.debian_sources((Target("cdrom:x", "bookworm", "main", "amd64", "Debian"),), "trixie") == ()


def test_lines_of_another_shape_are_skipped():
    text = f"{BASE}\tbookworm\tmain\tamd64\tDebian\nnonsense\n\n"
    assert apt.parse_targets(text) == HOST[:1]


def test_a_metapackage_leads_to_its_kernel():
    assert (
        sources.kernel_package("linux-image-6.1.0-1-cloud-amd64 (= 6.1)") == "linux-image-6.1.0-1-cloud-amd64"
    )
    assert sources.kernel_package("a, linux-image-6.12:arm64 (= 1) | b,") == "linux-image-6.12"
    assert not sources.kernel_package("")
    assert not sources.kernel_package("kmod, , linux-base")
