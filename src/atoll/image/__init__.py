"""Kernel bundles and root images: what a VM boots and what it finds there.

========== ==========================================================================
cpio       initramfs archives (pure)
compression the compressed forms that kernels and modules come in
vmlinux    a bootable kernel out of what distributions ship (pure)
modules    kernel modules: their dependencies and load order (pure, but for reading a tree)
modindex   the index files that modprobe wants beside the modules (pure)
deb        reading Debian packages
apt        what the host's apt knows, and packages through it
erofs      EROFS images: made by mkfs.erofs, checked here
disk       disks that guests write to
extents    where the bytes of a disk lie, and disks laid over one another (pure, but for raw files)
qcow2      overlays over disks: written and read, and checked
kernel     kernel bundles: finding the cached one in a millisecond, and asking for a new one
sources    where a kernel and its modules come from
bundle     building a kernel bundle
packing    from a tree with owners to an image, as root or in a user namespace
debian     building the root images of Debian and Ubuntu
machine    what an image for machines has beside: systemd, trimmed (pure)
tarstream  reading tar archives that nobody vouches for, as they pass (pure)
decompressing streams without their compression, however much they unpack to
oci        OCI images: references, documents, sources, layers as one root, how they are run
registry   images of registries: had from them, and given to them
local      images of files, directories, pipes and engines; and to files
local      images that are at hand: archives, directories, engines; and giving images away
recipes    the images that Atoll builds, and names (pure)
manifest   an image on disk, and whether it is whole
foreign    what others call architectures, and what runs their programs
emulation  the disk from which a guest gets that
catalog    the root images on this host
========== ==========================================================================
"""
