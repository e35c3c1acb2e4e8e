"""What a TIFF file says about its values, which OpenCV does not always heed.

OpenCV up to 4.5 names signed, half precision and 32- or 64-bit whole numbers as another type of the same width, and
does not decode packed values. From 4.6 on it spreads packed values of 10, 12 and 14 bits over 16. All releases up to
5.0 lose colours of more than 8 bits that lie in planes. Found by decoding files of every number type with OpenCV 4.2,
4.5.4, 4.5.5, 4.6, 4.8, 4.10 and 5.0.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Dict, NamedTuple, Optional

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BITS, _SAMPLES, _PLANES, _FORMAT = 258, 277, 284, 339
_VALUE_FORMS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_KINDS = {1: "u", 2: "i", 3: "f"}
_PACKED = (10, 12, 14)


class TiffValues(NamedTuple):
    """How the values of the first picture of a TIFF file are stored."""

    bits: int
    """Of one value."""
    kind: str
    """``u`` unsigned, ``i`` signed, ``f`` float."""
    in_planes: bool
    """Several channels, each in a plane of its own."""

    @property
    def shift(self) -> int:
        """Bits by which OpenCV moves packed values up."""
        return 16 - self.bits if self.bits in _PACKED else 0

    def as_declared(self, picture: NDArray[Any]) -> NDArray[Any]:
        """What OpenCV decoded, by the type that the file names: the bytes are right, even where OpenCV's type is not.

        >>> TiffValues(16, "i", False).as_declared(np.array([65535], np.uint16)).tolist()
        [-1]
        """
        if self.bits != 8 * picture.itemsize or (self.kind == "f" and self.bits == 8):
            return picture
        return picture.view(np.dtype(f"{self.kind}{picture.itemsize}"))


def values_of(data: bytes) -> Optional[TiffValues]:
    """What the first directory of a file says; None where the file is no TIFF, or its directory cannot be read."""
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        fields = _fields(data)
    except struct.error:
        return None
    kind = _KINDS.get(fields.get(_FORMAT, 1))
    in_planes = fields.get(_PLANES, 1) == 2 and fields.get(_SAMPLES, 1) > 1
    return None if kind is None else TiffValues(fields.get(_BITS, 1), kind, in_planes)


def _fields(data: bytes) -> Dict[int, int]:
    """The first value of each of the tags above; struct.error where the file ends before it."""
    order, big = (">" if data[:2] == b"MM" else "<"), data[2:4] in (b"+\0", b"\0+")
    count_form, entry_form = (order + "Q", order + "HHQ8s") if big else (order + "H", order + "HHI4s")
    (start,) = struct.unpack_from(order + "Q", data, 8) if big else struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(count_form, data, start)
    first, step = start + struct.calcsize(count_form), struct.calcsize(entry_form)
    fields: Dict[int, int] = {}
    for position in range(first, first + count * step, step):
        tag, kind, values, inline = struct.unpack_from(entry_form, data, position)
        if tag in (_BITS, _SAMPLES, _PLANES, _FORMAT) and kind in _VALUE_FORMS:
            form = order + _VALUE_FORMS[kind]
            if values * struct.calcsize(form) > len(inline):  # they stand elsewhere
                (place,) = struct.unpack(order + ("Q" if big else "I"), inline)
                fields.setdefault(tag, int(struct.unpack_from(form, data, place)[0]))
            else:
                fields.setdefault(tag, int(struct.unpack_from(form, inline)[0]))
    return fields
