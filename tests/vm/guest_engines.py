"""An engine for tests of the Docker socket in a real guest: a server there that runs what a client says."""

from __future__ import annotations

import asyncio

from atoll import aio
from atoll.vm.state import StateError

SOCKET = "/run/engine.sock"

#: For each client a process: its first line is a command for the shell, whose input and output the client is.
SERVER = f"""
use Socket; $SIG{{CHLD}} = 'IGNORE'; unlink '{SOCKET}';
socket(S, PF_UNIX, SOCK_STREAM, 0) && bind(S, sockaddr_un('{SOCKET}')) && listen(S, 1024) or die $!;
open(R, '>', '/run/engine.ready');
while (accept(C, S)) {{
  if (!fork) {{
    my ($line, $c) = ('', ''); while (sysread(C, $c, 1) && $c ne "\\n") {{ $line .= $c }}
    if ($line eq 'echo') {{ my $data; while (sysread(C, $data, 65536)) {{ syswrite(C, $data) }} exit }}
    open(STDIN, '<&', C); open(STDOUT, '>&', C); close(C); close(S);
    exec('/bin/sh', '-c', $line);
  }}
  close(C);
}}
"""
START = """
test -e /run/engine.ready && exit
perl -e "$1" > /dev/null 2>&1 &
while ! test -e /run/engine.ready; do sleep 0.02; done
"""


class GuestEngine:
    """The server in the machine ``dev``."""

    def __init__(self, config, _):
        self.machine = aio.Machine("dev", config=config)

    async def ensure_ready(self, timeout):  # noqa: ASYNC109
        async with asyncio.timeout(timeout):
            await self.machine.start()
            await self.machine.run(["sh", "-c", START, "sh", SERVER], check=True)

    async def dial(self, window):
        if self.machine._control is None or self.machine.control.broken:
            await self.machine.connect()
        return self.machine.control.agent.connect(SOCKET, window=window)

    async def busy(self):
        return False

    async def suspend(self):
        try:
            await self.machine.suspend()
        except StateError as error:
            if error.code != "state.not_running":
                raise
        await self.machine.close()

    async def close(self):
        await self.machine.close()
