"""Policies that have a name."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["PRESETS", "Preset"]


class Preset(msgspec.Struct, frozen=True):
    """Rules as users write them, and the default."""

    rules: tuple[str, ...]
    default: str


#: Whence operating systems, languages and containers get their packages.
_REGISTRIES: Final = (
    # Debian and Ubuntu, Alpine, Fedora, Arch Linux
    "deb.debian.org",
    "security.debian.org",
    "snapshot.debian.org",
    "archive.ubuntu.com",
    "*.archive.ubuntu.com",
    "security.ubuntu.com",
    "ports.ubuntu.com",
    "dl-cdn.alpinelinux.org",
    "dl.fedoraproject.org",
    "mirrors.fedoraproject.org",
    "geo.mirror.pkgbuild.com",
    # Python, JavaScript, Rust, Go, Ruby, Java, PHP, .NET, Perl, Haskell
    "pypi.org",
    "files.pythonhosted.org",
    "registry.npmjs.org",
    "registry.yarnpkg.com",
    "crates.io",
    "index.crates.io",
    "static.crates.io",
    "static.rust-lang.org",
    "proxy.golang.org",
    "sum.golang.org",
    "rubygems.org",
    "index.rubygems.org",
    "repo.maven.apache.org",
    "repo1.maven.org",
    "plugins.gradle.org",
    "repo.packagist.org",
    "api.nuget.org",
    "www.cpan.org",
    "hackage.haskell.org",
    # Containers
    "registry-1.docker.io",
    "auth.docker.io",
    "production.cloudflare.docker.com",
    "ghcr.io",
    "pkg-containers.githubusercontent.com",
    "quay.io",
    "*.quay.io",
    "registry.k8s.io",
    "mcr.microsoft.com",
    "*.data.mcr.microsoft.com",
)

PRESETS: Final = {
    "none": Preset((), "deny"),
    "registries": Preset(tuple(f"allow tcp {name}:80,443" for name in _REGISTRIES), "deny"),
    "open": Preset((), "allow"),
}
