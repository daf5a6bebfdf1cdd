"""The engine as this user's settings say, put together for whoever needs it."""

from __future__ import annotations

import contextlib
import os

from atoll.config import Config, Renewed
from atoll.containers.engine import Engine
from atoll.containers.hosting import address_inside
from atoll.containers.listener import Timing
from atoll.containers.settings import EngineSettings, Proxy
from atoll.errors import ConfigError
from atoll.events import Emit, ignore
from atoll.machine.spec import Share

__all__ = ["engine", "engine_settings", "served", "timing"]


def engine(config: Config, emit: Emit = ignore) -> Engine:
    """The engine. Nothing is done before a method is called."""
    return Engine(engine_settings(config), config=config, on_event=emit)


def served(config: Config, emit: Emit = ignore) -> Engine:
    """The engine for a process that goes on: before each start the user's configuration is looked at again.

    Where things are kept stays what ``config`` says.
    """
    renewed = Renewed({"data_dir": config.data_dir, "cache_dir": config.cache_dir})
    return Engine(
        engine_settings(config), config=config, on_event=emit, renew=lambda: engine_settings(renewed())
    )


def engine_settings(config: Config) -> EngineSettings:
    """What is wanted of the engine: directories that are not there are not shared."""
    shares = [str(path) for path in config.docker_shares if path.is_dir()]
    return EngineSettings(
        cpus=config.docker_cpus,
        memory=config.docker_memory,
        disk=config.docker_disk,
        daemon=config.docker_daemon,
        proxy=_proxy(config),
        mirrors=config.docker_mirrors,
        insecure=config.docker_insecure_registries,
        certificates=config.docker_ca,
        shares=tuple(Share(host=path, guest=path) for path in shares),
    )


def _proxy(config: Config) -> Proxy:
    """What the settings say; else what this host's own programs go by, as far as the engine can reach it."""
    if config.docker_proxy or not config.ca:
        return Proxy(http=config.docker_proxy, https=config.docker_proxy, no=config.docker_no_proxy)
    given = {
        name: os.environ.get(name) or os.environ.get(name.upper()) or ""
        for name in ("http_proxy", "https_proxy", "no_proxy")
    }
    usable = {}
    for name in ("http_proxy", "https_proxy"):
        with contextlib.suppress(ConfigError):  # of the loopback, but not where the engine reaches it
            usable[name] = given[name] if address_inside(given[name]) else ""
    exceptions = (word for word in given["no_proxy"].replace(" ", ",").split(",") if word)
    return Proxy(
        http=usable.get("http_proxy", ""),
        https=usable.get("https_proxy", ""),
        no=tuple(dict.fromkeys((*config.docker_no_proxy, *exceptions))),
    )


def timing(config: Config) -> Timing:
    """How long the Docker socket's listener waits for what."""
    return Timing(idle=config.docker_idle)
