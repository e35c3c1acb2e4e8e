"""What is recorded with every cached teacher picture: where it comes from and how it agrees with its pair.

The settings of its store say what is equal for all pictures of a teacher: weights hash, version, steps, seed. The item
says what is its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from duskfuse import __version__
from duskfuse.data.priors.cache import JsonValue, TeacherImage
from duskfuse.teachers.agreement import Agreement
from duskfuse.teachers.teacher import Crop, Ingredient, TeacherJob, TeacherPicture, ValueTransform


@dataclass(frozen=True)
class TeacherItem:
    """The record beside the pixels of one cached picture."""

    name: str
    """Of the pair, in the dataset from which it was cached."""
    ir: str
    """Key of the infrared picture in the prior cache: the hash of what it was read from."""
    vis: str
    """Key of the visible picture."""
    crop: Crop
    """The part of the pair that the picture shows: top, left, height, width in pixels."""
    transform: ValueTransform
    agreement: Agreement
    made_from: tuple[Ingredient, ...] = ()
    duskfuse: str = __version__
    """Version that cached it."""

    @classmethod
    def of(cls, record: TeacherImage) -> TeacherItem | None:
        """The item of a cached picture; None where another version of duskfuse or another program wrote it."""
        try:
            return _ITEM.validate_python(record.meta)
        except ValidationError:
            return None

    @classmethod
    def describe(cls, job: TeacherJob, picture: TeacherPicture, agreement: Agreement) -> TeacherItem:
        """The item of a picture that was just made."""
        ir, vis = job.keys
        return cls(job.files.name, ir, vis, picture.crop, picture.transform, agreement, picture.made_from)

    def to_meta(self) -> dict[str, JsonValue]:
        """Plain data for the record."""
        meta: dict[str, Any] = _ITEM.dump_python(self, mode="json")
        return meta


_ITEM = TypeAdapter(TeacherItem)
