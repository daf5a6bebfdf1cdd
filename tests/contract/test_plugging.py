"""A hypervisor that can plug nothing in says so, and the machine goes on as it was."""

from __future__ import annotations

import pytest
from machines import at_rest, enter, kill_all_at, supervised

from atoll.vm.bootplan import Share
from atoll.vm.state import Phase, StateError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
async def control(tmp_path):
    place = enter(tmp_path)
    control = await supervised(place)
    await control.start()
    yield control
    await control.stop(force=True)
    control.close()
    await at_rest(place)
    kill_all_at(tmp_path)


@pytest.mark.parametrize(
    "ask",
    [
        lambda control: control.memory(),
        lambda control: control.memory(1 << 28),
        lambda control: control.resize(memory=1 << 30),
        lambda control: control.resize(cpus=2, disk=1 << 30),
    ],
)
async def test_what_it_cannot_do_is_refused_by_its_code(control, ask):
    with pytest.raises(StateError) as caught:
        await ask(control)
    assert caught.value.code == "state.unsupported"
    assert caught.value.hint


async def test_a_share_is_refused_and_leaves_nothing(control, tmp_path):
    with pytest.raises(StateError) as caught:
        await control.add_share(Share(str(tmp_path), "/mnt/share"))
    assert caught.value.code in {"state.unsupported", "state.share"}
    assert not list(tmp_path.rglob("shares.json"))
    assert await control.shares() == ()


async def test_a_machine_that_does_not_run_is_given_nothing(control, tmp_path):
    await control.pause()
    for ask in (
        control.memory(),
        control.resize(memory=1 << 30),
        control.add_share(Share(str(tmp_path), "/mnt/share")),
        control.remove_share("/mnt/share"),
        control.shares(),
    ):
        with pytest.raises(StateError) as caught:
            await ask
        assert caught.value.code == "state.not_running"
    await control.resume()
    assert (await control.status()).state.phase is Phase.RUNNING
