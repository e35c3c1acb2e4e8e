"""TIFF files of every number type, written byte by byte: what cameras write and OpenCV's own writer cannot."""

from __future__ import annotations

import struct
from typing import Any

from numpy.typing import NDArray


def tiff(values: NDArray[Any], bits: int, *, order: str = "<", sample_format: int = 1) -> bytes:
    """An uncompressed TIFF of ``[H, W]``, or of ``[C, H, W]`` in planes; ``order`` ``<`` or ``>``.

    Values of odd widths are packed, most significant bit first; each row begins with a byte of its own.
    """
    planes = values[None] if values.ndim == 2 else values
    strips = [b"".join(_row(row, bits, order) for row in plane) for plane in planes]
    count, (height, width) = len(planes), planes.shape[1:]
    starts = [8 + sum(map(len, strips[:index])) for index in range(count)]
    fields = {256: [width], 257: [height], 258: [bits] * count, 259: [1], 262: [2 if count == 3 else 1], 273: starts,
              277: [count], 278: [height], 279: list(map(len, strips)), 284: [2 if count > 1 else 1],
              339: [sample_format] * count}  # fmt: skip
    end = starts[-1] + len(strips[-1])
    beyond = end + 2 + 12 * len(fields) + 4
    entries, lists = b"", b""
    for tag, numbers in sorted(fields.items()):
        text = struct.pack(f"{order}{len(numbers)}I", *numbers)
        entries += struct.pack(order + "HHI", tag, 4, len(numbers))
        entries += text if len(numbers) == 1 else struct.pack(order + "I", beyond + len(lists))
        lists += text if len(numbers) > 1 else b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", end)
    return head + b"".join(strips) + struct.pack(order + "H", len(fields)) + entries + bytes(4) + lists


def _row(row: NDArray[Any], bits: int, order: str) -> bytes:
    if bits % 8 == 0:
        return row.astype(row.dtype.newbyteorder(">" if order == ">" else "<")).tobytes()
    text = "".join(format(int(value), f"0{bits}b") for value in row)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")
