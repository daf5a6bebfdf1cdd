"""What is built once for all tests, for those that need it in directories of their own."""

from __future__ import annotations

import os
import shutil

from atoll.errors import ImageError
from atoll.image import catalog, kernel
from atoll.paths import Paths


def link_or_copy(source, target):
    """Another name for the file, or a copy where the file system is another."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def take_kernel(paths: Paths, own: Paths, *, agent=None, copy=link_or_copy):
    """The kernel that guests have by default; what others build there meanwhile stays where it is."""
    bundle = kernel.ensure(paths, agent=agent)
    shutil.copytree(bundle.directory, own.kernel(bundle.directory.name), copy_function=copy)
    for pointer in paths.kernels.glob("default-*.json"):
        shutil.copy(pointer, own.kernels)
    return kernel.load(own, bundle.directory.name)


def built_image(paths: Paths, name: str):
    """The image ``name``; one of an earlier state of this checkout, which lacks a program, is built anew."""
    image = catalog.ensure(paths, name)
    try:
        catalog.require_programs(image.manifest)
    except ImageError:
        return catalog.build(paths, name, force=True)
    return image


def take_image(paths: Paths, own: Paths, name: str, *, copy=link_or_copy):
    """The image ``name``."""
    directory = built_image(paths, name).directory
    shutil.copytree(directory, own.images / directory.name, copy_function=copy)
