"""Both ends of a network's TCP connections: a guest that is honest and plain, and a socket of the host.

They check what they see: sums, windows that do not shrink, nothing beyond a window, each end told once.
"""

from __future__ import annotations

import struct

from atoll.network.tcp.flows import Ends, Flows
from atoll.network.tcp.segment import ACK, FIN, PSH, RST, SYN

GUEST_MAC, GATEWAY_MAC = b"\x02\0\0\0\0\x01", b"\x52\x55\x0a\0\x02\x02"
ENDS = Ends(bytes((10, 0, 2, 15)), 40000, bytes((203, 0, 113, 5)), 443)
ENDS_6 = Ends(b"\xfd" + bytes(14) + b"\x0f", 40000, b"\x20\x01" + bytes(13) + b"\x05", 443)
MASK = (1 << 32) - 1
BURST = 1 << 18
SHIFT = 7


def is_sound(segment, pseudo):
    """Whether the words of a segment and its pseudo header sum up as RFC 9293, section 3.1 wants."""
    data = pseudo + segment + bytes(len(segment) & 1)
    return sum(struct.unpack(f">{len(data) // 2}H", data)) % 65535 == 0


class Segment:
    """One segment to the guest, as it lies in a frame."""

    def __init__(self, frame):
        assert frame[:12] == GUEST_MAC + GATEWAY_MAC
        packet = frame[14:]
        if frame[12:14] == b"\x08\0":
            assert len(packet) == int.from_bytes(packet[2:4])
            assert is_sound(packet[:20], b"")
            ends, tcp = packet[12:20], packet[20:]
        else:
            assert len(packet) == 40 + int.from_bytes(packet[4:6])
            ends, tcp = packet[8:40], packet[40:]
        assert is_sound(tcp, ends + struct.pack(">HIH", 6, len(tcp), 0))
        self.sequence, self.acknowledged, offset, self.flags, self.window = struct.unpack(">IIBBH", tcp[4:16])
        self.options = tcp[20 : offset >> 2]
        self.payload = tcp[offset >> 2 :]


def split(data):
    """The frames that one call has transmitted."""
    frames = []
    while data:
        size = int.from_bytes(data[:4])
        assert len(data) >= 4 + size
        frames.append(data[4 : 4 + size])
        data = data[4 + size :]
    return frames


class Socket:
    """The host's side: as much is taken as ``room`` says."""

    def __init__(self):
        self.flow = self.over = None
        self.came, self.to_send, self.sent = bytearray(), bytearray(), bytearray()
        self.room = 1 << 40
        self.is_reading = self.drains = self.ended = self.ends = self.has_ended = False

    def dial(self, flow):
        self.flow = flow

    def write(self, data):
        taken = min(len(data), self.room)
        self.room -= taken
        self.came += data[:taken]
        return taken

    def want_drain(self):
        self.drains = True

    def end(self):
        assert not self.ended
        self.ended = True

    def resume(self):
        self.is_reading = True

    def closed(self, *, reset):
        assert self.over is None
        self.over = "reset" if reset else "ended"

    def pump(self, now):
        """What an event loop does with a socket that is readable."""
        while self.over is None and self.is_reading and (self.to_send or (self.ends and not self.has_ended)):
            room = self.flow.room()
            if room <= 0:
                self.is_reading = False
            elif self.to_send:
                piece = bytes(self.to_send[: min(room, BURST)])
                del self.to_send[: len(piece)]
                self.sent += piece
                self.flow.send(piece, now)
            else:
                self.is_reading, self.has_ended = False, True
                self.flow.end(now)

    def drain(self):
        if self.drains and self.room and self.over is None:
            self.drains = False
            self.flow.drain()


class Guest:
    """A plain TCP: acknowledges each segment, keeps what comes out of order, sends again when asked to."""

    def __init__(self, world, *, isn, capacity=65535, shift=0, mss=1460):
        self.world = world
        self.isn = self.una = isn
        self.next = (isn + 1) & MASK
        self.capacity, self.shift, self.mss = capacity, shift, mss
        self.sent, self.acked_bytes = bytearray(), 0
        self.came, self.unread = bytearray(), 0
        self.apart: dict[int, bytes] = {}
        self.expected = self.edge = self.fin_at = None
        self.room_to = 0
        self.is_open = self.has_fin = self.was_reset = self.sent_fin = self.wants_end = False
        self.told_edge = 0

    # What it sends

    def out(self, flags, sequence=None, payload=b"", options=b"", acknowledged=None):
        self.world.to_network(
            self.next if sequence is None else sequence & MASK,
            (self.expected or 0) if acknowledged is None else acknowledged & MASK,
            flags,
            self.window() if not flags & SYN else min(65535, self.capacity - self.unread),
            options,
            payload,
        )

    def window(self):
        free = max(0, self.capacity - self.unread)
        if self.expected is not None:
            seen = self.offset(self.expected) + (min(65535, free >> self.shift) << self.shift)
            self.told_edge = max(self.told_edge, seen)
        return min(65535, free >> self.shift)

    def offset(self, sequence):
        """Of the network's numbers: bytes since its first."""
        return (sequence - self.base) & MASK

    def connect(self):
        options = struct.pack(">BBHBBBB", 2, 4, self.mss, 1, 3, 3, self.shift)
        self.out(SYN, self.isn, options=options)

    def may_send(self):
        """Bytes of ``sent`` that may be out."""
        return self.room_to

    def push(self, count=1 << 30):
        """Send again what is not acknowledged, and what is not sent yet, as the window allows."""
        at = self.acked_bytes
        end = min(len(self.sent), self.may_send(), at + count)
        while at < end:
            piece = bytes(self.sent[at : min(end, at + self.mss)])
            self.say(at, piece)
            at += len(piece)
        if self.wants_end and at == len(self.sent):
            self.sent_fin = True
            self.out(FIN | ACK, self.isn + 1 + at)

    def say(self, at, piece):
        self.next = (self.isn + 1 + max(at + len(piece), (self.next - self.isn - 1) & MASK)) & MASK
        self.out(ACK | PSH, self.isn + 1 + at, piece)

    def read(self, count):
        before = self.window()
        self.unread = max(0, self.unread - count)
        if self.is_open and self.window() != before and not (self.was_reset or self.has_fin):
            self.out(ACK)

    # What it gets

    def take(self, segment):
        if segment.flags & RST:
            self.was_reset |= not self.world.is_done()
            return
        if segment.flags & SYN:
            if not self.is_open:
                self.base = (segment.sequence + 1) & MASK
                self.expected = self.base
                self.is_open = True
                self.una = (self.isn + 1) & MASK
                assert segment.acknowledged == self.una
                self.room_to = segment.window
            self.out(ACK)
            return
        if not self.is_open:
            return
        self.acknowledged(segment)
        ahead = (segment.sequence - self.expected) & MASK
        if segment.payload or segment.flags & FIN or ahead > self.window() << self.shift:
            self.data(segment)
            self.out(ACK)

    def acknowledged(self, segment):
        done = (segment.acknowledged - self.isn - 1) & MASK
        assert done <= len(self.sent) + self.sent_fin
        self.acked_bytes = max(self.acked_bytes, min(done, len(self.sent)))
        self.una = segment.acknowledged
        edge = done + (segment.window << SHIFT)
        assert edge > self.room_to - (1 << SHIFT) or done > len(self.sent), "the window shrinks"
        self.room_to = max(self.room_to, edge)

    def data(self, segment):
        at = self.offset(segment.sequence)
        if at > 1 << 31:
            at -= 1 << 32
        end = at + len(segment.payload)
        assert end <= max(self.told_edge, len(self.came) + 1) or not segment.payload, "beyond the window"
        if segment.flags & FIN:
            self.fin_at = end
        if segment.payload:
            self.apart[at] = segment.payload
        while True:
            found = [start for start in self.apart if start <= len(self.came)]
            if not found:
                break
            start = min(found)
            piece = self.apart.pop(start)
            fresh = piece[len(self.came) - start :]
            fresh = fresh[: max(0, self.capacity - self.unread)]
            self.came += fresh
            self.unread += len(fresh)
        if self.fin_at is not None and self.fin_at == len(self.came):
            self.has_fin = True
        self.expected = (self.base + len(self.came) + self.has_fin) & MASK


class World:
    """A guest, its flows, and one socket for each connection that it asks for."""

    def __init__(self, *, ends=ENDS, mtu=1500, refuse=False, **guest):
        self.now = 1000.0
        self.ends = ends
        self.frames: list[bytes] = []
        self.sockets: list[Socket] = []
        self.refuse = refuse
        self.drops = self.dropped = 0
        self.pending: list[tuple] = []
        self.flows = Flows(
            self.transmit, self, GUEST_MAC + GATEWAY_MAC, mtu=mtu, clock=lambda: self.now, secret=b"s" * 16
        )
        self.allowance = self.flows.allowance
        self.guest = Guest(self, **{"isn": 7} | guest)

    @property
    def socket(self):
        return self.sockets[-1]

    def open(self, _ends):
        if self.refuse:
            return None
        self.sockets.append(Socket())
        return self.sockets[-1]

    def transmit(self, parts):
        self.frames += split(b"".join(parts))

    def to_network(self, sequence, acknowledged, flags, window, options, payload):
        self.pending.append((sequence, acknowledged, flags, window, options, payload))

    def feed(self, sequence, acknowledged, flags, window, options=b"", payload=b""):
        """One segment of the guest's, as a station gives it."""
        flow = self.flows.table.get(self.ends.key)
        view = memoryview(options)
        if flow is not None:
            flow.segment(sequence, acknowledged, flags, window, view, memoryview(payload), self.now)
        else:
            self.flows.first(self.ends.key, sequence, acknowledged, flags, window, view, len(payload))

    def run(self):
        """Until nothing is under way."""
        for _ in range(5000):
            for socket in self.sockets:
                socket.drain()
                socket.pump(self.now)
            if self.pending:
                pending, self.pending = self.pending, []
                for segment in pending:
                    self.feed(*segment)
                self.flows.acknowledge()
            elif self.frames:
                frames, self.frames = self.frames, []
                for frame in frames:
                    if self.drops:
                        self.drops -= 1
                        self.dropped += 1
                    else:
                        self.guest.take(Segment(frame))
            elif self.flows.lazy:
                self.flows.acknowledge_all()
            else:
                return
        raise AssertionError("they never come to rest")

    def tick(self, seconds):
        self.now += seconds
        self.flows.tick(self.now)
        self.run()

    def connect(self):
        self.guest.connect()
        self.run()
        self.socket.flow.connected(self.now)
        self.run()
        assert self.guest.is_open

    def settle(self):
        """Both ends have said all, the guest reads all, nothing is lost any more."""
        guest, socket = self.guest, self.socket
        self.drops = 0
        socket.room, socket.ends, guest.wants_end = 1 << 40, True, True
        for _ in range(400):
            guest.read(1 << 40)
            self.run()
            if socket.over and (guest.was_reset or guest.acked_bytes == len(guest.sent)) and self.is_done():
                return
            if not guest.was_reset and not self.is_done():
                guest.push()
            self.run()
            self.tick(1.1)
        raise AssertionError("the connection does not end")

    def is_done(self):
        guest = self.guest
        all_said = (guest.una - guest.isn - 1) & MASK == len(guest.sent) + 1
        return guest.was_reset or (guest.has_fin and guest.sent_fin and all_said)
