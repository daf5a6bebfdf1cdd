"""The root of the machine in which Docker's engine runs: Debian's packages, and nothing that it does without.

Docker's client is not in it: clients are on the host. What is in it beside the engine itself is what the
engine calls: iptables, git for builds of a repository, ps for ``docker top``, programs that unpack layers;
and qemu-user for images of the other architecture (`atoll.image.foreign`). The machine that builds images
(`atoll.building`) has the same root, lest two be built: buildah makes it larger by an eighth.
"""

from __future__ import annotations

from atoll.image.foreign import FOREIGN, interpreter

__all__ = ["BUILDER", "CLEAN", "EXCLUDED", "OPTIONAL", "PACKAGES", "REQUIRED", "VARIANT"]

#: What builds images (`atoll.building`).
BUILDER = "buildah"

#: mmdebstrap's variant: the essential packages, without apt.
VARIANT = "essential"

PACKAGES = (
    "buildah",  # for `atoll build`, whose machine has the same root
    "ca-certificates",
    "containerd",
    "crun",  # starts a container with half of the work that runc does
    "docker.io",
    "git",
    "iptables",
    "kmod",  # loads modules from the kernel bundle
    "mount",
    "netbase",  # /etc/services and /etc/protocols
    "pigz",  # unpacks layers with more than one thread
    "procps",
    "qemu-user",
    "runc",
    "tini",
    "xz-utils",
)

#: dpkg's path-exclude for files of these packages: what no program of the engine reads.
EXCLUDED = (
    "/usr/bin/containerd-shim",  # of former versions
    "/usr/bin/containerd-shim-runc-v1",
    "/usr/bin/containerd-stress",
    "/usr/bin/ctr",
    "/usr/bin/qemu-[!ax]*",  # other architectures than these two: 30 of them, 440 MB
    "/usr/bin/qemu-a[!a]*",
    "/usr/bin/qemu-aarch64_be",
    "/usr/bin/qemu-x[!8]*",
    "/usr/lib/*/perl/5*",  # git's commands in Perl are for mail and Subversion
    "/usr/lib/cni/*",  # networks of containers that are built: they have their machine's
    "/usr/libexec/buildah/*",  # its tests
    "/usr/share/bash-completion/*",
    "/usr/share/git-core/contrib/*",
    "/usr/share/gitweb/*",
    "/usr/libexec/qemu-binfmt/*",
    "/usr/share/perl/*",
    "/usr/share/qemu/*",
    "/usr/share/zsh/*",
)

#: What must be there before the machine starts, each in one of ``programs.SEARCH``.
REQUIRED = (
    "containerd",
    "containerd-shim-runc-v2",
    "crun",
    "docker-init",
    "docker-proxy",
    "dockerd",
    "iptables",
    "runc",
)

#: What it can do without: an engine that lacks them says so when they are needed.
OPTIONAL = (BUILDER, *(interpreter(architecture) for architecture in FOREIGN))

#: Run in the tree: the older iptables, since each call of it takes half the time, and the module of the newer
#: one need not be loaded. What would emulate the root's own architecture goes, and GnuPG's programs: buildah
#: has its library, and no keys.
CLEAN = """
for name in iptables ip6tables; do
    for what in '' -save -restore; do
        ln -sf "/usr/sbin/$name-legacy$what" "etc/alternatives/$name$what"
    done
done
native=aarch64
[ ! -e usr/lib64/ld-linux-x86-64.so.2 ] || native=x86_64
rm -f "usr/bin/qemu-$native" usr/bin/dirmngr* usr/bin/gpg* usr/bin/pinentry*
rm -rf usr/lib/gnupg usr/share/gnupg
rm -rf usr/share/docker.io var/lib/containerd/* var/lib/docker
mkdir -p etc/docker etc/containerd
"""
