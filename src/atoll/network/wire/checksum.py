"""The Internet checksum (RFC 1071).

A sum of 16-bit words in ones' complement is the number that those words make, modulo 65535. In which byte
order they are read matters to the order of the result alone (RFC 1071, section 2 (B)).

Payloads are summed by a small library that is compiled with this package, ``native/checksum.c``. Where there
is none a payload becomes one large number, which is folded in halves by shifts: half the time of a division.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable

from atoll.paths import checksum_path

__all__ = ["checksum", "ones_sum", "piece_sum"]

#: Widths in bits to which a number is folded, and their masks: multiples of 16, so that words stay words.
_FOLDS = tuple((width, (1 << width) - 1) for width in (1 << power for power in range(18, 9, -1)))

#: Bytes from which folding is faster than one division.
_LARGE = 4096

#: Bytes from which a call of the library is faster than Python.
_WORTH_A_CALL = 256


def _library() -> Callable[[bytes, int, int], int] | None:
    """What sums the words of ``size`` bytes at ``start``, in the order of x86 and Arm, if it is here."""
    try:
        function = ctypes.CDLL(str(checksum_path(platform.machine()))).atoll_ones_sum
    except OSError:
        return None
    function.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t)
    function.restype = ctypes.c_uint
    return function


_SUM = _library()


def piece_sum(data: bytes, start: int, size: int) -> int:
    """``ones_sum`` of ``size`` bytes from ``start`` on, which must be there."""
    if _SUM is None or size < _WORTH_A_CALL:
        return ones_sum(memoryview(data)[start : start + size])
    number = _SUM(data, start, size)
    return number >> 8 | (number & 0xFF) << 8


def ones_sum(data: bytes | bytearray | memoryview) -> int:
    """The sum of the big-endian 16-bit words of ``data``, 0 to 65535; an odd last byte counts as a high one.

    For data that is not all zero a sum of zero is 65535 or 0 alike, as in ones' complement.
    """
    number = int.from_bytes(data, "little")
    if len(data) >= _LARGE:
        for width, mask in _FOLDS:
            number = (number >> width) + (number & mask)
    number %= 65535
    return number >> 8 | (number & 0xFF) << 8


def checksum(total: int) -> int:
    """What to write down for words that sum up to ``total``, which need not be folded yet."""
    return 65535 - total % 65535
