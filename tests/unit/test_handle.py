"""What a process writes, as a program reads it: nothing is lost, and only what was read is acknowledged."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import ChannelError
from atoll.guest import handle
from atoll.guest.handle import Holder, Reader
from atoll.guest.opening import Closing, opening


class Scripted:
    """An output that comes in pieces."""

    def __init__(self, pieces):
        self._pieces = [piece for piece in pieces if piece]
        self.offset = 0
        self.fetched = 0

    async def fetch(self):
        piece = self._pieces.pop(0) if self._pieces else b""
        self.fetched += len(piece)
        return piece

    def acknowledge(self, count):
        self.offset += count
        assert self.offset <= self.fetched


async def unexplained(error: ChannelError):
    return error


def reader(pieces):
    return Reader(Scripted(pieces), Holder("x", unexplained))


pieces = st.lists(st.binary(max_size=12) | st.text("ab\r\nü", max_size=12).map(str.encode), max_size=12)


@given(pieces)
def test_lines_are_those_of_the_text_however_it_is_cut(cut):
    async def attempt():
        output = reader(cut)
        return [line async for line in output.lines()], output.offset

    data = b"".join(cut)
    expected = data.removesuffix(b"\n").split(b"\n") if data else []
    lines, offset = asyncio.run(attempt())
    assert lines == [line.removesuffix(b"\r").decode(errors="replace") for line in expected]
    assert offset == len(data)


@given(pieces, st.integers(0, 12))
def test_what_follows_the_lines_that_were_read_is_not_acknowledged_and_can_be_read(cut, count):
    async def attempt():
        output = reader(cut)
        for _ in range(count):
            await output.readline()
        offset = output.offset
        return offset, await output.read_all()

    data = b"".join(cut)
    offset, rest = asyncio.run(attempt())
    assert data[offset:] == rest
    assert offset == sum(len(line) for line in split(data)[:count])


@given(pieces, st.lists(st.booleans(), min_size=20, max_size=20))
def test_lines_at_hand_are_the_same_and_are_acknowledged_with_the_next_read(cut, asks):
    async def attempt():
        output = reader(cut)
        lines = []
        while True:
            line = output.line_at_hand() if asks.pop(0) else None
            asks.append(True)
            if line is None and (line := await output.readline()) is None:
                assert await output.read() == b""
                return lines, output
            lines.append(line)

    lines, output = asyncio.run(attempt())
    data = b"".join(cut)
    plain = [line.removesuffix(b"\n").removesuffix(b"\r") for line in split(data)]
    assert lines == [line.decode(errors="replace") for line in plain]
    assert output.offset == output._output.offset == len(data)


def test_no_more_than_a_little_is_read_without_being_acknowledged():
    output = reader([b"12345\n" * 50_000])
    assert asyncio.run(output.readline()) == "12345"
    while output.line_at_hand():
        pass
    assert 65_536 < output._owed < 65_600
    assert output.offset == output._output.offset + output._owed
    assert asyncio.run(output.readline()) == "12345"
    assert output._owed == 0


def split(data):
    """Lines with their ends; only newlines end one."""
    *lines, last = data.split(b"\n")
    return [line + b"\n" for line in lines] + ([last] if last else [])


def test_a_line_without_end_comes_in_parts(monkeypatch):
    monkeypatch.setattr(handle, "_LONGEST_LINE", 10)

    async def attempt():
        return [line async for line in reader([b"0123456", b"789abcdefghijklmnop", b"q\nr"]).lines()]

    assert asyncio.run(attempt()) == ["0123456789", "abcdefghij", "klmnopq", "r"]


class Door(Closing):
    """Something that is opened."""

    def __init__(self):
        self.open = True

    async def close(self):
        self.open = False


class House:
    """Something that opens."""

    @opening
    async def door(self, *, locked=False):
        """Open the door."""
        if locked:
            raise PermissionError
        return Door()


def test_what_is_opened_is_awaited_or_entered():
    async def attempt():
        door = await House().door()
        assert door.open
        async with door:
            pass
        async with House().door() as other:
            assert other.open
        assert not door.open
        assert not other.open
        task = await asyncio.create_task(House().door())
        assert task.open
        try:
            async with House().door(locked=True):
                raise AssertionError("it was locked")
        except PermissionError:
            return True

    assert asyncio.run(attempt())
    assert House.door.__doc__ == "Open the door."
