"""What the folders of a dataset hold, by their names alone.

Published sets agree on one file per modality under the same stem, and on nothing else: ``ir``, ``Infrared``, ``T`` or
``lwir``; the split above (``train/ir``) or below (``infrared/train``) the modality; one folder with two endings
(FLIR-aligned). The rules of a known dataset are the generic ones and its own peculiarities, so being recognised never
makes a folder unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from duskfuse.data import class_tables
from duskfuse.data.annotations import WHITE_BORDER
from duskfuse.data.class_tables import ClassTable
from duskfuse.data.datasets.tree import Parts


class Side(StrEnum):
    """What a folder holds."""

    IR = "infrared"
    VIS = "visible"
    RGBT = "infrared and visible in one file"
    LABEL = "label"
    BOXES = "boxes"
    SALIENCY = "saliency"


class DatasetKind(StrEnum):
    """The datasets that are known, under the names they are published by."""

    FMB = "FMB"
    MSRS = "MSRS"
    MFNET = "MFNet"
    M3FD = "M3FD"
    ROADSCENE = "RoadScene"
    TNO = "TNO"
    LLVIP = "LLVIP"
    KAIST = "KAIST"
    FLIR = "FLIR-aligned"
    DRONEVEHICLE = "DroneVehicle"
    VT5000 = "VT5000"
    M3SVD = "M3SVD"


FOLDERS: Mapping[Side, tuple[str, ...]] = {
    Side.IR: ("ir", "infrared", "thermal", "t", "lwir", "tir", "inf"),
    Side.VIS: ("vis", "vi", "visible", "rgb"),
    Side.LABEL: ("label", "labels", "labels-with-images", "segmentation_labels", "segmentation", "seg", "mask"),
    Side.BOXES: ("boxes", "labels-with-txt"),
    Side.SALIENCY: ("saliency",),
}
"""Names accepted in any dataset, in lower case. Text files in a label folder are boxes."""

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_ONE_SPELLING = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}

FLIR_ENDINGS: Mapping[Side, str] = {Side.IR: "_PreviewData", Side.VIS: "_RGB"}
"""Endings of the stem where one folder holds both modalities (FLIR-aligned ``JPEGImages``)."""


def split_named(name: str) -> str:
    """One spelling for the names of a split.

    >>> split_named("Validation"), split_named("val"), split_named("night")
    ('val', 'val', 'night')
    """
    return _ONE_SPELLING.get(name.lower(), name.lower())


@dataclass(frozen=True)
class FolderRules:
    """What the folders of one dataset hold."""

    own: Mapping[Side, tuple[str, ...]] = field(default_factory=dict)
    """The dataset's own folder names, in lower case; of several that hold one side the first counts."""
    layouts: tuple[str, ...] = ()
    """The layouts in which the dataset circulates, for messages."""
    endings: Mapping[Side, str] = field(default_factory=lambda: dict(FLIR_ENDINGS))
    """Endings of the stem where one folder holds both modalities."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Folders, in lower case, that stand for another name, or with an empty one for none, in the place of a pair."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """Folders, in lower case, that belong to a split although they are not called so."""
    passed_over: frozenset[str] = frozenset()
    """Folders, in lower case, whose pictures are no sources although they are called so."""
    skipped: str = r"(?!)"
    """Regular expression of the stems that are left out."""
    tidied: str = ""
    """Regular expression of what is taken out of a stem before stems are compared."""
    border: int = 0
    """Pixels of white that may frame every picture."""
    videos: bool = False
    """Whether videos stand for folders of frames."""
    scenes: bool = False
    """Whether a folder may be a scene, its pictures told apart by their names (TNO)."""
    label_classes: ClassTable | None = None
    box_classes: ClassTable | None = None
    known: bool = True
    """False for the rules of folders that are no known dataset."""

    @cached_property
    def side_of(self) -> Mapping[str, Side]:
        """Lower-case folder name → what the folder holds."""
        return {name: side for names in (FOLDERS, self.own) for side, held in names.items() for name in held}

    def rank(self, side: Side, name: str) -> int:
        """How a folder called ``name`` compares with others of its side; the lowest counts."""
        own = self.own.get(side, ())
        return own.index(name.lower()) if name.lower() in own else len(own)

    def side_place(self, parts: Parts) -> int | None:
        """Which of the folders on the way to a file says what the file is; None where none does."""
        return next((place for place, part in enumerate(parts) if part.lower() in self.side_of), None)

    def passes_over(self, parts: Parts) -> bool:
        """Whether a folder on the way holds nothing of the dataset."""
        return any(part.lower() in self.passed_over for part in parts)

    def group(self, parts: Parts) -> Parts:
        """What the way to a file says beside its side: pictures of one group and one stem are one pair."""
        place = self.side_place(parts)
        group: list[str] = []
        for index, part in enumerate(parts):
            meant = self.renamed.get(part.lower(), "" if index == place else part)
            if meant and (not group or group[-1].lower() != meant.lower()):
                group.append(meant)
        return tuple(group)

    def split_of(self, group: Parts) -> str | None:
        """The split that a group belongs to, as its folder says it."""
        for part in group:
            if part.lower() in SPLITS:
                return part
            if part.lower() in self.splits:
                return self.splits[part.lower()]
        return None

    def stem(self, stem: str) -> str:
        """The stem by which a file is matched."""
        for ending in self.endings.values():
            stem = stem.removesuffix(ending)
        return re.sub(self.tidied, "", stem, flags=re.IGNORECASE)

    def skips(self, stem: str) -> bool:
        """Whether a file with this stem is left out."""
        return re.search(self.skipped, stem) is not None

    def accepted(self) -> str:
        """What to say to somebody whose folder does not fit."""
        if self.layouts:
            return f"it circulates as {'; or '.join(self.layouts)}"
        return (
            f"name the folders one of: infrared {' '.join(FOLDERS[Side.IR])}, visible {' '.join(FOLDERS[Side.VIS])} "
            "(any case; a split folder may be above or below)"
        )


GENERIC = FolderRules(known=False)

_DRONE_SPLITS = ("train", "val", "test")

RULES: Mapping[DatasetKind, FolderRules] = {
    DatasetKind.FMB: FolderRules(
        own={Side.LABEL: ("label", "color")},
        layouts=("{train,test}/{Infrared,Visible,Label}/*.png",),
        label_classes=class_tables.FMB_LABELS,
    ),
    DatasetKind.MSRS: FolderRules(
        layouts=(
            "{train,test}/{ir,vi,Segmentation_labels}/*.png",
            "detection/{ir,vi,labels}/",
            "{Infrared,Visible,Label}/train/MSRS/*.png",
        ),
        label_classes=class_tables.MFNET_LABELS,
        box_classes=class_tables.MSRS_OBJECTS,
    ),
    DatasetKind.MFNET: FolderRules(
        own={Side.RGBT: ("images",), Side.LABEL: ("labels",)},
        layouts=("{images,labels}/*.png, the images of four channels, beside train.txt, val.txt, test.txt",),
        skipped=r"_flip$",
        label_classes=class_tables.MFNET_LABELS,
    ),
    DatasetKind.M3FD: FolderRules(
        own={Side.BOXES: ("annotation", "annotations")},
        layouts=(
            "{Ir,Vis,Annotation}/",
            "{ir,vi,labels,meta}/, meta with train.txt, val.txt, pred.txt",
            "{ir,vi,labels}/{train,test}/",
        ),
        passed_over=frozenset({"mask", "iqa"}),
        box_classes=class_tables.M3FD_OBJECTS,
    ),
    DatasetKind.ROADSCENE: FolderRules(
        own={Side.IR: ("cropinfrared",), Side.VIS: ("crop_lr_visible",)},
        layouts=("{cropinfrared,crop_LR_visible}/*.jpg", "{ir,vi}/"),
    ),
    DatasetKind.TNO: FolderRules(
        own={Side.IR: ("thermal", "rad"), Side.VIS: ("visual", "dhv")},
        layouts=(
            "{ir,vi}/*.png",
            "{Athena,DHV,FEL,Triclobs}_images/SCENE/ with pictures called IR… or LWIR… and VIS…",
        ),
        tidied=r"^(?:rad|dhv)(?=\w*\d)|(?<=\d)[iv]$",
        scenes=True,
    ),
    DatasetKind.LLVIP: FolderRules(
        own={Side.BOXES: ("annotations",)},
        layouts=("{infrared,visible}/{train,test}/*.jpg and Annotations/*.xml",),
        box_classes=class_tables.LLVIP_OBJECTS,
    ),
    DatasetKind.KAIST: FolderRules(
        own={
            Side.IR: ("lwir",),
            Side.VIS: ("visible",),
            Side.BOXES: (
                "annotations-xml-new-sanitized",
                "annotations-xml-15",
                "annotations-xml-new",
                "annotations-xml",
                "annotations",
                "kaist_wash_annotation_train",
                "kaist_wash_annotation_test",
            ),
        },
        layouts=(
            "setXX/VXXX/{lwir,visible}/IXXXXX.jpg and annotations/setXX/VXXX/IXXXXX.txt (or .xml)",
            "kaist_wash_picture_{train,test}/{lwir,visible}/ and kaist_wash_annotation_{train,test}/",
        ),
        endings={Side.IR: "_lwir", Side.VIS: "_visible"},
        renamed={
            "images": "",
            "kaist_wash_picture_train": "train",
            "kaist_wash_picture_test": "test",
            "kaist_wash_annotation_train": "train",
            "kaist_wash_annotation_test": "test",
        },
        splits={f"set{number:02}": "train" if number < 6 else "test" for number in range(12)},
        passed_over=frozenset({"annotations_paired", "annotations-vbb"}),
        box_classes=class_tables.KAIST_OBJECTS,
    ),
    DatasetKind.FLIR: FolderRules(
        own={Side.BOXES: ("annotations",)},
        layouts=(
            "JPEGImages/FLIR_XXXXX_{RGB.jpg,PreviewData.jpeg} and Annotations/*.xml, align_train.txt beside",
            "{train,test}/ with the same names and Annotation_{train,test}.json",
        ),
        passed_over=frozenset({"annotatedimages"}),
        box_classes=class_tables.FLIR_OBJECTS,
    ),
    DatasetKind.DRONEVEHICLE: FolderRules(
        own={
            Side.IR: tuple(f"{split}imgr" for split in _DRONE_SPLITS),
            Side.VIS: tuple(f"{split}img" for split in _DRONE_SPLITS),
            Side.BOXES: tuple(f"{split}label{side}" for side in ("r", "") for split in _DRONE_SPLITS),
        },
        layouts=("{train,val,test}/{trainimg,trainimgr,trainlabel,trainlabelr}/, with valimg…, testimg… accordingly",),
        renamed={f"{split}{held}": split for split in _DRONE_SPLITS for held in ("img", "imgr", "label", "labelr")},
        border=WHITE_BORDER,
        box_classes=class_tables.DRONEVEHICLE_OBJECTS,
    ),
    DatasetKind.VT5000: FolderRules(
        own={Side.IR: ("t", "t_gray"), Side.VIS: ("rgb",), Side.SALIENCY: ("gt",)},
        layouts=("{Train,Test}/{RGB,T,GT}/",),
    ),
    DatasetKind.M3SVD: FolderRules(
        own={Side.IR: ("infrared_enhance", "infrared_noise"), Side.VIS: ("visible_enhance", "visible_blur")},
        layouts=(
            "{train,test}/{infrared_Enhance,visible_Enhance,infrared_noise,visible_Blur}/CLIP/*.png",
            "the same with CLIP.mp4",
        ),
        videos=True,
    ),
}
"""Where a dataset has both undisturbed and disturbed pictures (M3SVD), the undisturbed ones count."""


def rules_of(kind: DatasetKind | None) -> FolderRules:
    """The rules of a dataset; for None, the generic ones."""
    return GENERIC if kind is None else RULES[kind]
