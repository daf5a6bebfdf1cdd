"""Which image a name means where it may be there for several platforms, and what a VM of it is of.

A VM is of this host's architecture, and what its image has of another one is emulated in it; or it is of its
image's, and emulated itself.
"""

from __future__ import annotations

from atoll.config import Config
from atoll.errors import ImageError, PreflightError, RegistryError
from atoll.events import Emit, Warned, ignore
from atoll.hypervisor.model import Architecture, parse_architecture
from atoll.image import catalog
from atoll.image.foreign import FOREIGN, PLATFORMS
from atoll.image.kernel import host_architecture
from atoll.image.manifest import Image, touch
from atoll.image.recipe import EMULATION
from atoll.image.recipes import is_recipe
from atoll.vm.accelerator import Candidate

__all__ = ["architecture_of", "ensure_image", "image_architecture", "require_emulation", "warn_of_slowness"]

#: The architectures of images by their platforms.
_ARCHITECTURES = {platform: name for name, platform in PLATFORMS.items()}


def image_architecture(config: Config) -> str:
    """Of the images that are meant: that of the platform that was said, or else the host's."""
    return _ARCHITECTURES[config.platform] if config.platform else host_architecture()


def ensure_image(config: Config, name: str, emit: Emit = ignore) -> Image:
    """The image ``name`` for the platform of the settings, or else the host's; had if it is not here.

    One of Atoll's own is built, others are pulled. Of these one that is here for another platform is taken
    where none was said; that is told.

    Raises:
        ImageError: as ``catalog.find`` and ``catalog.build``.
        RegistryError: it cannot be had.
    """
    wanted = image_architecture(config)
    image = (
        _here(config, name, wanted)
        or _elsewhere(config, name, wanted, emit)
        or _had(config, name, wanted, emit)
    )
    touch(image)
    return image


def _here(config: Config, name: str, architecture: str) -> Image | None:
    try:
        return catalog.find(config.paths, name, architecture=architecture, default=config.default_registry)
    except ImageError as error:
        if error.code != "image.missing":
            raise
        return None


def _elsewhere(config: Config, name: str, wanted: str, emit: Emit) -> Image | None:
    """The image for another platform, if it is here and none was said."""
    if config.platform or is_recipe(name) or wanted not in FOREIGN:
        return None
    image = _here(config, name, FOREIGN[wanted])
    if image is not None and not config.full:
        there = PLATFORMS[image.manifest.architecture]
        hint = f"`--platform {there}` says that it is meant; with --full a whole VM of it is run"
        emit(Warned(message=f"{name} is here for {there} only: its programs are emulated", hint=hint))
    return image


def _had(config: Config, name: str, wanted: str, emit: Emit) -> Image:
    """The image, built or pulled."""
    if is_recipe(name):
        return catalog.build(config.paths, name, architecture=wanted, mirror=config.ubuntu_mirror, emit=emit)
    from atoll.image.oci.documents import platform_of  # noqa: PLC0415 - an image that is here needs none
    from atoll.image.registry.carrying import pull  # noqa: PLC0415

    try:
        return pull(config, name, platform_of(wanted), emit=emit)
    except RegistryError as error:
        error.hint = f"{_instead(config, name, wanted)}{error.hint}"
        raise


def _instead(config: Config, name: str, wanted: str) -> str:
    """What may have been meant by a name that cannot be had: the beginning of a hint, or nothing."""
    other = FOREIGN.get(wanted, "")
    if other and _here(config, name, other) is not None:
        return f"it is here for {PLATFORMS[other]}; "
    near = catalog.nearest(config.paths, name)
    return f"did you mean {near}? " if near else ""


def architecture_of(root: str) -> Architecture:
    """That of a root, as its image says it. Raises ``ImageError``: ``image.platform``: nothing runs it."""
    try:
        return parse_architecture(root)
    except ValueError:
        hint = f"use one of {', '.join(_ARCHITECTURES)}"
        raise ImageError(f"images of {root} cannot be run", code="platform", hint=hint) from None


def require_emulation(tested: Candidate, root: Architecture) -> None:
    """See that a guest's kernel can call what runs programs of a root of another architecture.

    Raises:
        PreflightError: it names the module that the kernel lacks.
    """
    if tested.files.modules is not None and EMULATION not in tested.devices:
        message = f"programs of {PLATFORMS[root]} cannot be run: the kernel lacks the module {EMULATION}"
        hint = "use Debian's kernel (leave out --kernel), or run a whole VM of it: --full"
        raise PreflightError(message, hint=hint)


def warn_of_slowness(root: Architecture, emit: Emit) -> None:
    """Tell of programs that are emulated in a guest that is emulated itself."""
    message = f"programs of {PLATFORMS[root]} are slow here: without KVM they are emulated twice over"
    emit(Warned(message=message, hint="--full runs a whole VM of it, which is many times faster here"))
