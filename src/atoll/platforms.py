"""Which image a name means where it may be there for several platforms, and what a VM of it is of.

A VM is of this host's architecture, and what its image has of another one is emulated in it; or it is of its
image's, and emulated itself.
"""

from __future__ import annotations

from atoll.config import Config
from atoll.errors import ImageError, PreflightError
from atoll.events import Emit, Warned, ignore
from atoll.hypervisor.model import Architecture, parse_architecture
from atoll.image import catalog
from atoll.image.foreign import FOREIGN, PLATFORMS
from atoll.image.kernel import host_architecture
from atoll.image.manifest import Image
from atoll.image.recipe import EMULATION
from atoll.vm.accelerator import Candidate

__all__ = ["architecture_of", "ensure_image", "image_architecture", "require_emulation", "warn_of_slowness"]

#: The architectures of images by their platforms.
_ARCHITECTURES = {platform: name for name, platform in PLATFORMS.items()}


def image_architecture(config: Config) -> str:
    """Of the images that are meant: that of the platform that was said, or else the host's."""
    return _ARCHITECTURES[config.platform] if config.platform else host_architecture()


def ensure_image(config: Config, name: str, emit: Emit = ignore) -> Image:
    """The image ``name`` for the platform of the settings, or else the host's; built if it is not here.

    One that is here for another platform only, and cannot be built, is taken where none was said; that is
    told.

    Raises:
        ImageError: as ``catalog.ensure``; ``image.platform``: it is here for another platform than was said.
    """
    wanted = image_architecture(config)
    try:
        image = catalog.ensure(
            config.paths, name, architecture=wanted, mirror=config.ubuntu_mirror, emit=emit
        )
    except ImageError as error:
        if error.code not in {"image.missing", "image.unknown"} or wanted not in FOREIGN:
            raise
        try:
            image = catalog.find(config.paths, name, architecture=FOREIGN[wanted])
        except ImageError:
            raise error from None
    if image.manifest.architecture == wanted:
        return image
    there = PLATFORMS.get(image.manifest.architecture, image.manifest.architecture)
    if config.platform:
        message = f"the image {name} is not here for {config.platform}"
        raise ImageError(message, code="platform", hint=f"it is here for {there}")
    if not config.full:
        hint = f"`--platform {there}` says that it is meant; with --full a whole VM of it is run"
        emit(Warned(message=f"{name} is here for {there} only: its programs are emulated", hint=hint))
    return image


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
