"""A guest on a network that a process of its own serves: a namespace's kernel, plugged in as a VM is."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

from networks import brief_network
from tapguest import tap_guest

from atoll.hypervisor.port import listen
from atoll.vm.network.reaching import ensure, reach
from atoll.vm.network.requests import NetworkControl, Plug

MAC = "02:00:00:00:00:01"
STATIC = (
    "ip addr add 10.0.2.15/24 dev eth0",
    "ip route add default via 10.0.2.2",
)


@contextlib.asynccontextmanager
async def plugged_guest(place, *, commands=STATIC, mtu=65520, **rest):
    """``rest`` is what is said of its card beside."""
    brief_network(place)
    await asyncio.to_thread(ensure, place)
    control = NetworkControl(reach(place))
    path = place.directory / "card.sock"
    listener = listen(path)
    listener.setblocking(False)
    try:
        order = Plug(**{"socket": str(path), "owner": "one", "mac": MAC, "hostname": "dev", **rest})
        plugged, stream = await control.plug(order)
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
        with tap_guest(commands, mac=MAC, mtu=mtu, sock=sock) as guest:
            yield SimpleNamespace(guest=guest, control=control, plugged=plugged, stream=stream)
    finally:
        listener.close()
        path.unlink()
        control.close()


async def run(guest, source, *words):
    """What a program printed that ran in the guest."""
    process = guest.start(source, *words)
    out, error = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, error.decode()
    return out.decode().strip()
