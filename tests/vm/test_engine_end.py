"""The end of Docker's engine in a real guest: stopped, unable to start, and removed with all that it had."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
from machines import processes_at, until
from msgspec.structs import replace
from test_engine import LIMIT

from atoll.containers import composing
from atoll.containers.engine import Engine
from atoll.errors import EngineError

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(600)]


async def test_an_engine_that_cannot_start_is_told_with_its_own_words_and_can_be_reset(engine_config):
    settings = replace(composing.engine_settings(engine_config), daemon={"log-level": "shouting"})
    wrong = Engine(settings, config=engine_config)
    await wrong.stop()
    assert (await wrong.status()).phase in {"stopped", "absent"}
    with pytest.raises(EngineError) as caught:
        await wrong.ensure_ready(LIMIT)
    assert caught.value.code == "engine.dockerd"
    assert "shouting" in caught.value.detail
    place = wrong._machine.find().place
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ATOLL_")}
    own = {"ATOLL_DATA_DIR": str(engine_config.data_dir), "ATOLL_CACHE_DIR": str(engine_config.cache_dir)}
    words = [sys.executable, "-m", "atoll", "docker", "reset", "--force"]
    await asyncio.to_thread(subprocess.run, words, check=True, env={**kept, **own})
    assert (await wrong.status()).phase == "absent"
    await wrong.close()
    await until(lambda: not processes_at(place.directory), what="something of it still runs")
    assert not place.directory.exists()
