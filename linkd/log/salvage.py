"""What is whole in a damaged file, whatever lies between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from linkd.log.checksum import crc32
from linkd.log.frame import HEAD, MAGIC, SMALL, Claim, Frame, claim_at, frame_at

_PATIENCE = 4
"""So many times the file's length is summed up as frames claim, before sums are kept."""

_STEP_BYTES = 1024
"""From one kept sum to the next."""

_ONES = 0xFFFFFFFF


def good_frames(path: Path, seed: int, at: int = 0) -> list[Frame]:
    """Return all frames of a file from `at` on that are whole, whatever lies between them.

    What opens a segment counts at its beginning only, and what lies in other files nowhere: their
    CRCs have no secret in them, so that a published body could hold some.

    The time it takes grows with the file's length, also where each of its bytes claims to begin
    a frame.
    """
    return list(_good_frames(path.read_bytes(), seed, at))


def _good_frames(buffer: bytes, seed: int, at: int) -> Iterator[Frame]:
    view, sieve = memoryview(buffer), _Sieve(buffer, seed)
    while (at := buffer.find(MAGIC, at)) >= 0:
        frame = frame_at(view, at, 0, seed) if sieve.passes(at) else None
        if frame is None:
            at += 1
        else:
            yield frame
            at = frame.end


class _Sieve:
    """Holds back what can be told to be no frame without reading all that it claims.

    Args:
        buffer: All of the file.
        seed: The log's, for CRCs.
    """

    def __init__(self, buffer: bytes, seed: int) -> None:
        self._buffer = buffer
        self._seed = seed
        self._left = _PATIENCE * len(buffer)
        self._sums: Sums | None = None

    def passes(self, at: int) -> bool:
        """Return whether there may be a frame at `at`; its own CRC tells."""
        claim = claim_at(self._buffer, at)
        if claim is None or claim.kind == SMALL or (claim.kind == HEAD and at > 0):
            return False
        self._left -= claim.end - at
        return self._left >= 0 or claim.kind == HEAD or self._adds_up(claim)

    def _adds_up(self, claim: Claim) -> bool:
        """Return whether a claim's CRC is right."""
        if self._sums is None:
            self._sums = Sums(self._buffer)
        return self._sums.crc(claim.begin, claim.end, self._seed) == claim.crc


class Sums:
    """The CRC of any stretch of a buffer, in a time that hardly depends on its length.

    A CRC is linear: that of a stretch is the difference of those of what ends with it and of what
    ends before it, the latter moved on over as many zeros as the stretch is long.

    Args:
        buffer: The bytes, less than 4 GiB.
    """

    def __init__(self, buffer: bytes) -> None:
        self._view = memoryview(buffer)
        self._marks = [0]
        for at in range(0, len(buffer), _STEP_BYTES):
            self._marks.append(crc32(self._view[at : at + _STEP_BYTES], self._marks[-1]))
        self._moves = _moves(len(buffer).bit_length())

    def crc(self, begin: int, end: int, seed: int) -> int:
        """Return `crc32(buffer[begin:end], seed)`."""
        return self._until(end) ^ self._moved(self._until(begin) ^ seed, end - begin)

    def _until(self, at: int) -> int:
        """Return the CRC of all before `at`."""
        mark = at // _STEP_BYTES
        return crc32(self._view[mark * _STEP_BYTES : at], self._marks[mark])

    def _moved(self, value: int, count: int) -> int:
        """Return a difference of CRCs moved on over `count` zeros."""
        level = 0
        while count:
            if count & 1:
                value = _move(self._moves[level], value)
            count >>= 1
            level += 1
        return value


_Move = tuple[list[int], list[int], list[int], list[int]]
"""What moving on makes of each value of each of the four bytes, the lowest first."""


def _move(move: _Move, value: int) -> int:
    """Return what a move makes of a value."""
    low, second, third, high = move
    return (
        low[value & 255] ^ second[value >> 8 & 255] ^ third[value >> 16 & 255] ^ high[value >> 24]
    )


def _moves(levels: int) -> list[_Move]:
    """Return the moves over 1, 2, 4 and so on zeros, as many as `levels`."""
    one = [
        [crc32(b"\0", byte << at ^ _ONES) ^ _ONES for byte in range(256)] for at in (0, 8, 16, 24)
    ]
    moves: list[_Move] = [(one[0], one[1], one[2], one[3])]
    while len(moves) < levels:
        last = moves[-1]
        twice = [[_move(last, value) for value in values] for values in last]
        moves.append((twice[0], twice[1], twice[2], twice[3]))
    return moves
