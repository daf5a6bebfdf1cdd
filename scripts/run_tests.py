"""Run all tests as sessions of pytest side by side, since those with guests wait more than they compute.

``run_tests.py WORDS...`` passes ``WORDS`` to each. Progress is shown line by line as it comes, a session's
report in one piece when it has ended. The status is 0 if all succeeded. Whatever asks this program to end
interrupts all, which then clean up.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

#: Tests of the Docker engine and of its image, which wait for their guests most of all. Those of the engine
#: but one have the same, with nothing in it at first; the last removes it.
_ENGINE = [
    *(f"tests/e2e/test_{name}.py" for name in ("docker", "build")),
    *(
        f"tests/vm/test_{name}.py"
        for name in (
            "engine",
            "engine_host",
            "migration_engines",
            "docker_chaos",
            "engine_end",
            "docker_socket",
        )
    ),
]

#: Others of guests, so that each session has as much to do.
_BESIDE = [f"tests/vm/test_{name}.py" for name in ("systemd_machine", "templates", "warm_templates")]

#: What each runs, so that in a fresh checkout, where images are built too, all take about as long.
SESSIONS = {
    "unit, contract, e2e": [
        *(f"tests/{name}" for name in ("unit", "contract", "images", "e2e")),
        *(f"--ignore={path}" for path in _ENGINE[:2]),
    ],
    "vm": ["tests/vm", *(f"--ignore={path}" for path in (*_ENGINE[2:], *_BESIDE))],
    "engine": [*_ENGINE, *_BESIDE],
}


class Session:
    """One run of pytest, whose output is passed on.

    Attributes:
        last: its last line.
    """

    def __init__(self, name: str, words: list[str], screen: threading.Lock) -> None:
        cache = name.replace(", ", "-").replace(
            " ", "-"
        )  # both would write down what failed in the same file
        self.name = name
        self.last = ""
        self._screen = screen
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-o", f"cache_dir=.pytest_cache/{cache}", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,  # a terminal's interrupt reaches it once, by ``interrupt``
        )
        self._reader = threading.Thread(target=self._pass_on)
        self._reader.start()

    def interrupt(self) -> None:
        """Have it end its test and clean up."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        """Its status, once all that it said has been shown."""
        status = self._process.wait()
        self._reader.join()
        return status

    def _pass_on(self) -> None:
        """Lines as they come; from the second heading on, where the report begins, without others between."""
        assert self._process.stdout is not None
        headings = 0
        with self._process.stdout as lines:
            for line in lines:
                is_heading = b"=====" in line[:20]
                headings += is_heading
                if headings == 2 and is_heading:
                    self._screen.acquire()
                self._show(line) if headings >= 2 else self._show_alone(line)
        if headings >= 2:
            self._screen.release()

    def _show_alone(self, line: bytes) -> None:
        with self._screen:
            self._show(line)

    def _show(self, line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        self.last = line.decode(errors="replace").strip("= \n") or self.last


def main(words: list[str]) -> int:
    """Run both; 0 if they succeeded."""
    sessions: list[Session] = []
    asked = threading.Event()

    def interrupt(*_: object) -> None:
        asked.set()
        for session in sessions:
            session.interrupt()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    screen = threading.Lock()
    colour = ["--color=yes"] if sys.stdout.isatty() else []
    for name, chosen in SESSIONS.items():
        if not asked.is_set():
            sessions.append(Session(name, [*colour, *words, *chosen], screen))
    statuses = [session.wait() for session in sessions]
    for session in sessions:
        print(f"{session.name}: {session.last}")
    return int(any(statuses) or asked.is_set())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
