"""PNG files that are the same byte for byte on every machine.

Libraries that compress agree on what a stream means, not on its bytes: zlib and zlib-ng write different
ones at any level. So this is the little compressor that flat pictures need: the Paeth filter turns flat
areas into zeros, and a fixed Huffman code with "repeat the last byte" shortens the runs of zeros.
"""

from __future__ import annotations

import re
import struct
import zlib
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.int16]
_RUN = re.compile(rb"\0{4,}")
_LONGEST = 258
_END = "0000000"


def _length_code(symbol: int) -> str:
    """The fixed Huffman code of the end of a block (256) and of repeat lengths (257 to 285)."""
    return format(symbol - 256, "07b") if symbol < 280 else format(symbol - 280 + 0b11000000, "08b")


@cache
def _codes() -> tuple[list[str], list[str]]:
    """Bits for each literal byte, and for "repeat the last byte" each number of times from 3 to 258."""
    literals = [format(b + 0x30, "08b") if b < 144 else format(b - 144 + 0x190, "09b") for b in range(256)]
    repeats = [""] * 3
    symbol = 257
    for extra in (0, 0, 1, 2, 3, 4, 5):
        for _ in range(4):
            tails = [format(i, f"0{extra}b")[::-1] if extra else "" for i in range(1 << extra)]
            repeats += [_length_code(symbol) + tail + "00000" for tail in tails]
            symbol += 1
    repeats[_LONGEST:] = [_length_code(285) + "00000"]
    return literals, repeats


def deflate(data: bytes) -> bytes:
    """A zlib stream of one block."""
    literals, repeats = _codes()
    bits = ["110"]  # last block; type 1 (fixed codes), lowest bit first
    done = 0
    for run in _RUN.finditer(data):
        bits += map(literals.__getitem__, data[done : run.start() + 1])
        whole, rest = divmod(run.end() - run.start() - 1, _LONGEST)
        bits += [repeats[_LONGEST]] * whole
        bits.append(repeats[rest] if rest > 2 else literals[0] * rest)
        done = run.end()
    bits += map(literals.__getitem__, data[done:])
    stream = "".join(bits) + _END
    body = int(stream[::-1], 2).to_bytes((len(stream) + 7) // 8, "little")
    return b"\x78\x01" + body + struct.pack(">I", zlib.adler32(data))


def _filtered(picture: Image.Image) -> bytes:
    """Every byte minus its Paeth prediction from the pixels to the left, above, and above left.

    That is 0 where all four are the same colour, which is nearly everywhere: only the rest is computed.
    """
    width, height = picture.size
    pixels = np.zeros((height + 1, width + 1, 4), np.uint8)  # a black frame above and to the left
    pixels[1:, 1:] = np.frombuffer(picture.convert("RGBX").tobytes(), np.uint8).reshape(height, width, 4)
    whole = pixels.view(np.uint32)[:, :, 0]
    here, left, above, corner = whole[1:, 1:], whole[1:, :-1], whole[:-1, 1:], whole[:-1, :-1]
    down, right = np.divmod(np.flatnonzero((here != left) | (here != above) | (here != corner)), width)
    near = [pixels[down + d, right + r, :3].astype(np.int16) for d, r in ((1, 1), (1, 0), (0, 1), (0, 0))]
    lines = np.zeros((height, 1 + 3 * width), np.uint8)
    lines[:, 0] = 4
    for colour, rest in enumerate((near[0] - _paeth(*near[1:])).astype(np.uint8).T):
        lines[down, 1 + 3 * right + colour] = rest
    return lines.tobytes()


def _paeth(left: Bytes, above: Bytes, corner: Bytes) -> Bytes:
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
