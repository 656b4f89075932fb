"""PNG files that are the same byte for byte on every machine.

Libraries that compress agree on what a stream means, not on its bytes: zlib and zlib-ng write different
ones at any level. So this is the little compressor that flat pictures need: the Paeth filter turns flat
areas into zeros, and a fixed Huffman code with "repeat the last byte" shortens the runs of zeros.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Numbers = NDArray[np.int16]
Codes = NDArray[np.int64]
_SHORTEST, _LONGEST = 4, 258
_BITS = 24


def _packed(codes: list[str]) -> Codes:
    """Each code as a number, its first bit lowest, and how many bits it has above _BITS."""
    return np.array([int(code[::-1], 2) | len(code) << _BITS for code in codes])


def _length_code(symbol: int) -> str:
    """The fixed Huffman code of the end of a block (256) and of repeat lengths (257 to 285)."""
    return format(symbol - 256, "07b") if symbol < 280 else format(symbol - 280 + 0b11000000, "08b")


@cache
def _codes() -> tuple[Codes, Codes]:
    """[256] for each literal byte; [259] for "repeat the last byte" each number of times (not below 3)."""
    literals = [format(b + 0x30, "08b") if b < 144 else format(b - 144 + 0x190, "09b") for b in range(256)]
    repeats = ["0"] * 3
    symbol = 257
    for extra in (0, 0, 1, 2, 3, 4, 5):
        for _ in range(4):
            tails = [format(i, f"0{extra}b")[::-1] if extra else "" for i in range(1 << extra)]
            repeats += [_length_code(symbol) + tail + "00000" for tail in tails]
            symbol += 1
    repeats[_LONGEST:] = [_length_code(285) + "00000"]
    return _packed(literals), _packed(repeats)


def deflate(data: bytes) -> bytes:
    """A zlib stream of one block: last block with fixed codes, the symbols, the end of the block."""
    symbols = _symbols(np.frombuffer(data, np.uint8))
    length = symbols >> _BITS
    end = np.cumsum(length) + 3
    start = end - length
    code = (symbols & ((1 << _BITS) - 1)) << (start & 7)
    body = np.zeros((int(end[-1]) if len(end) else 3) + 7 + 7 >> 3)
    body[0] = 0b011
    for byte in range(4):  # no two codes share a bit, so that adding is joining
        piece = np.bincount((start >> 3) + byte, code >> 8 * byte & 255)[: len(body)]
        body[: len(piece)] += piece
    return b"\x78\x01" + body.astype(np.uint8).tobytes() + struct.pack(">I", zlib.adler32(data))


def _symbols(data: NDArray[np.uint8]) -> Codes:
    """[n] packed codes: of bytes, and of repeats where four zeros or more stand side by side."""
    literals, repeats = _codes()
    others = np.flatnonzero(data != 0)
    zeros = np.diff(others, prepend=-1, append=len(data)) - 1  # before each other byte, and behind the last
    whole, rest = np.divmod(zeros - 1, _LONGEST)
    short = zeros < _SHORTEST
    whole[short], rest[short] = 0, 0
    said = np.where(short, zeros, 1 + whole + np.where(rest > 2, 1, rest))  # symbols for these zeros
    start = np.cumsum(said) - said + np.arange(len(said))
    found = np.full(said.sum() + len(others), literals[0])
    found[(start + said)[:-1]] = literals[data[others]]
    found[_places(start + 1, whole)] = repeats[_LONGEST]
    found[(start + whole + 1)[rest > 2]] = repeats[rest[rest > 2]]
    return found


def _places(first: Codes, number: Codes) -> Codes:
    """`number` places from `first` on, one stretch after the other."""
    before = np.cumsum(number) - number
    return np.repeat(first - before, number) + np.arange(number.sum())


def _filtered(picture: Image.Image) -> bytes:
    """Every byte minus its Paeth prediction from the pixels to the left, above, and above left.

    That is 0 where all four are the same, which is nearly everywhere: only the rest is computed.
    """
    width, height = 3 * picture.width, picture.height
    colours = np.zeros((height + 1, width + 3), np.uint8)  # a black frame above and to the left
    colours[1:, 3:] = np.asarray(picture).reshape(height, width)
    near = colours[1:, 3:], colours[1:, :-3], colours[:-1, 3:], colours[:-1, :-3]
    changes = np.flatnonzero((near[0] != near[1]) | (near[0] != near[2]) | (near[0] != near[3]))
    down = changes // width
    at = changes + 3 * down  # where the corner lies in the frame
    here, left, above, corner = (colours.ravel()[at + step].astype(np.int16) for step in (width + 6, width + 3, 3, 0))
    lines = np.zeros((height, 1 + width), np.uint8)
    lines[:, 0] = 4
    lines.ravel()[changes + down + 1] = here - _paeth(left, above, corner)
    return lines.tobytes()


def _paeth(left: Numbers, above: Numbers, corner: Numbers) -> Numbers:
    """Whichever of the three is nearest to left + above - corner; the first of those equally near."""
    far_left, far_above = abs(above - corner), abs(left - corner)
    far_corner = abs(left + above - 2 * corner)
    second = np.where(far_above <= far_corner, above, corner)
    return np.where((far_left <= far_above) & (far_left <= far_corner), left, second)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(picture: Image.Image) -> bytes:
    """An RGB picture as a PNG file."""
    if picture.mode != "RGB":
        raise ValueError(f"picture mode {picture.mode!r} given, 'RGB' expected: convert it first")
    header = struct.pack(">IIBBBBB", *picture.size, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", deflate(_filtered(picture))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)
