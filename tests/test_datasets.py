"""The public datasets in miniature: recognised, paired, cut and labelled as their owners meant them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from duskfuse.data.class_tables import FMB_LABELS, MFNET_LABELS
from duskfuse.data.datasets.folder_rules import DatasetKind
from duskfuse.data.datasets.recognise import recognise
from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256, write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles, Part, SourcePicture, check_sizes, read_ir, read_pair, read_vis
from duskfuse.data.priors.cache_masks import cache_masks
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.evaluate.evaluate import evaluate

SIZE = (24, 32)


def infrared(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Grey, brighter from top to bottom; its last row tells the number."""
    rows = np.linspace(20, 120 + 10 * number, size[0]).round().astype(np.uint8)
    return np.repeat(rows[:, None], size[1], axis=1)


def visible(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Redder from left to right, much green, no blue; the green tells the number."""
    columns = np.linspace(30, 220, size[1]).round().astype(np.uint8)
    picture = np.zeros((*size, 3), np.uint8)
    picture[..., 0], picture[..., 1] = columns, 250 - 10 * number
    return picture


@dataclass
class Miniature:
    """A dataset of tiny pictures, and what is expected of it."""

    root: Path
    kind: DatasetKind
    pairs: dict[str, int] = field(default_factory=dict)
    """Name → the number that its pictures show."""
    tolerance: float = 0.5
    """Grey levels that the two pictures may differ by from what was written."""

    def add(self, name: str, ir: str, vis: str) -> None:
        """Write a pair under a new number."""
        number = self.pairs.setdefault(name, len(self.pairs))
        for path, picture in ((self.root / ir, infrared(number)), (self.root / vis, visible(number))):
            write_picture(path, picture)
        if ".jp" in (ir + vis).lower():
            self.tolerance = 12

    def ids(self, name: str, classes: int = 9) -> np.ndarray:
        return np.random.default_rng(self.pairs[name]).integers(0, classes, SIZE).astype(np.uint8)

    def label(self, name: str, path: str, classes: int = 9) -> None:
        write_picture(self.root / path, self.ids(name, classes))

    def text(self, path: str, *lines: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text("".join(f"{line}\n" for line in lines))

    def voc(self, path: str, *objects: tuple[str, int, int, int, int], size: tuple[int, int] = SIZE) -> None:
        rows = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            "</bndbox></object>"
            for name, x0, y0, x1, y1 in objects
        )
        stated = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>"
        self.text(path, f"<annotation>{stated}{rows}</annotation>")

    def check(self, found: list[PairFiles], *names: str, above: str = "") -> dict[str, PairFiles]:
        """Every expected pair is there and nothing else, with the right content and a key of its own.

        ``above`` is what the names lack where a part of the dataset was asked for.
        """
        assert [files.name for files in found] == sorted(names or self.pairs)
        keys = [key for files in found for key in files.prior_keys()]
        assert len(set(keys)) == len(keys) == 2 * len(found)
        for files in found:
            number = self.pairs[above + files.name]
            pair = read_pair(files)
            check_sizes(files)
            size = files.vis.size()
            assert pair.size == size == files.ir.size()
            torch.testing.assert_close(
                pair.ir[0] * 255, torch.from_numpy(infrared(number, size)).float(), atol=self.tolerance, rtol=0
            )
            torch.testing.assert_close(
                pair.vis.permute(1, 2, 0) * 255,
                torch.from_numpy(visible(number, size)).float(),
                atol=self.tolerance,
                rtol=0,
            )
            np.testing.assert_array_equal(read_ir(files), pair.ir[0].numpy())
            np.testing.assert_array_equal(read_vis(files), pair.vis.permute(1, 2, 0).numpy())
        return {files.name: files for files in found}


def boxes(files: PairFiles) -> list[list[float]]:
    """Class, left, top, right, bottom in pixels of the miniature."""
    read = read_pair(files).boxes
    assert read is not None
    height, width = files.vis.size()
    rows = []
    for kind, cx, cy, w, h in read.tolist():
        corners = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
        rows.append([kind, *(round(value, 3) for value in corners)])
    return rows


def seg(files: PairFiles) -> np.ndarray:
    read = read_pair(files).seg
    assert read is not None
    return read.numpy()


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was printed for the user since the last call."""
    return lambda: capsys.readouterr().err


@pytest.fixture
def mini(tmp_path: Path) -> Callable[..., Miniature]:
    return lambda kind, folder: Miniature(tmp_path / folder, kind)


Mini = Callable[..., Miniature]
Said = Callable[[], str]


def test_fmb(mini: Mini, said: Said):
    fmb = mini(DatasetKind.FMB, "FMB")
    for split, stem in (("train", "00001"), ("train", "00002"), ("test", "00001")):
        fmb.add(f"{split}__{stem}", f"{split}/Infrared/{stem}.png", f"{split}/Visible/{stem}.png")
        fmb.label(f"{split}__{stem}", f"{split}/Label/{stem}.png", 15)
        colours = np.array(FMB_LABELS.colours, np.uint8)[fmb.ids(f"{split}__{stem}", 15)]
        write_picture(fmb.root / split / "color" / f"{stem}.png", colours)
    found = fmb.check(find_pairs(fmb.root))
    assert said() == "FMB (Infrared/, Visible/): 3 pairs, labels in Label/\n"
    for name, files in found.items():
        np.testing.assert_array_equal(seg(files), fmb.ids(name, 15))
        assert (files.split, files.label_classes) == (name.partition("__")[0], FMB_LABELS)
        assert files.label is not None
        files.label.unlink()
    for name, files in {f"train__{files.name}": files for files in find_pairs(fmb.root, split="train")}.items():
        assert files.label is not None
        assert files.label.parent.name == "color"
        np.testing.assert_array_equal(seg(files), fmb.ids(name, 15))
    assert recognise(fmb.root) is recognise(fmb.root / "test") is DatasetKind.FMB


def test_fmb_is_known_by_its_size_and_a_folder_of_ones_own_is_not(tmp_path: Path, said: Said):
    for side in ("Infrared", "Visible", "Label"):
        write_picture(tmp_path / "mine" / "train" / side / "1.png", np.zeros((600, 800), np.uint8))
        write_picture(tmp_path / "other" / "train" / side / "1.png", np.zeros(SIZE, np.uint8))
    assert recognise(tmp_path / "mine") is DatasetKind.FMB
    assert recognise(tmp_path / "other") is None
    assert len(find_pairs(tmp_path / "other")) == 1
    assert said() == ""


def test_msrs(mini: Mini, said: Said):
    msrs = mini(DatasetKind.MSRS, "MSRS-main")
    for split, stem in (("train", "00633D"), ("train", "00881N"), ("test", "00537D")):
        msrs.add(f"{split}__{stem}", f"{split}/ir/{stem}.png", f"{split}/vi/{stem}.png")
        msrs.label(f"{split}__{stem}", f"{split}/Segmentation_labels/{stem}.png")
        write_picture(msrs.root / split / "Segmentation_visualize" / f"{stem}.png", visible(0))
    msrs.add("detection__1", "detection/ir/1.png", "detection/vi/1.png")
    msrs.text("detection/labels/1.txt", "2 0.25 0.5 0.25 0.5", "0 0.5 0.5 0.125 0.5")
    found = msrs.check(find_pairs(msrs.root))
    assert said() == "MSRS (ir/, vi/): 4 pairs, labels of 3 in Segmentation_labels/, boxes of 1 in labels/\n"
    np.testing.assert_array_equal(seg(found["test__00537D"]), msrs.ids("test__00537D"))
    assert found["test__00537D"].label_classes is MFNET_LABELS
    assert boxes(found["detection__1"]) == [[2, 4, 6, 12, 18], [0, 14, 6, 18, 18]]
    msrs.check(find_pairs(msrs.root, split="train"), "00633D", "00881N", above="train__")
    assert recognise(msrs.root / "detection") is DatasetKind.MSRS
    msrs.text("detection/labels/1.txt", "3 0.25 0.5 0.25 0.5")
    with pytest.raises(InputError, match=r"1\.txt: class 3; the classes of MSRS are person, bicycle, car"):
        read_pair(found["detection__1"])


def test_msrs_as_seafusion_unpacks_it(mini: Mini):
    msrs = mini(DatasetKind.MSRS, "MSRS")
    for stem in ("00001D", "00003N"):
        msrs.add(stem, f"Infrared/train/MSRS/{stem}.png", f"Visible/train/MSRS/{stem}.png")
        msrs.label(stem, f"Label/train/MSRS/{stem}.png")
    found = msrs.check(find_pairs(msrs.root, split="train"))
    np.testing.assert_array_equal(seg(found["00003N"]), msrs.ids("00003N"))


@pytest.fixture
def mfnet(mini: Mini) -> Miniature:
    """Three RGB-T pictures by day and night, one mirrored copy, lists."""
    mfnet = mini(DatasetKind.MFNET, "ir_seg_dataset")
    for stem in ("00001D", "00003N", "01606D"):
        number = mfnet.pairs.setdefault(stem, len(mfnet.pairs))
        stored = np.concatenate([visible(number)[..., ::-1], infrared(number)[..., None]], axis=2)
        for path, picture in ((f"{stem}.png", stored), (f"{stem}_flip.png", stored[:, ::-1])):
            (mfnet.root / "images").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(mfnet.root / "images" / path), picture)
        mfnet.label(stem, f"labels/{stem}.png")
    mfnet.text("train.txt", "00001D", "00001D_flip", "00003N")
    mfnet.text("val.txt", "01606D")
    mfnet.text("test_night.txt", "00003N.png")
    mfnet.text("black_list.txt", "00009D")
    mfnet.text("README.txt", "All images: 1569")
    return mfnet


def test_mfnet(mfnet: Miniature, said: Said):
    found = mfnet.check(find_pairs(mfnet.root))
    assert said() == "MFNet (images/, 4 channels): 3 pairs, labels in labels/\n"
    for name, files in found.items():
        np.testing.assert_array_equal(seg(files), mfnet.ids(name))
        assert files.ir.path == files.vis.path
    mfnet.check(find_pairs(mfnet.root, split="train"), "00001D", "00003N")
    assert said() == "MFNet (images/, 4 channels): 2 pairs, chosen by train.txt, labels in labels/\n"
    mfnet.check(find_pairs(mfnet.root, split="validation"), "01606D")
    (night,) = find_pairs(mfnet.root, split="test_night")
    assert (night.name, night.split) == ("00003N", "test_night")
    with pytest.raises(InputError, match=r"no split 'test'; .*choose from test_night, train, val$"):
        find_pairs(mfnet.root, split="test")
    mfnet.text("test.txt", "00001D", "99999D", "88888N")
    with pytest.raises(InputError, match=r"test\.txt: 99999D, 88888N not found among 3 pairs"):
        find_pairs(mfnet.root, split="test")


def test_a_folder_of_pictures_with_alpha_is_not_mfnet(tmp_path: Path):
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "holiday.png"), np.zeros((8, 8, 4), np.uint8))
    assert recognise(tmp_path) is None
    with pytest.raises(InputError, match="no infrared or visible folder"):
        find_pairs(tmp_path)


def test_m3fd_as_distributed(mini: Mini, said: Said):
    m3fd = mini(DatasetKind.M3FD, "M3FD_Detection")
    for stem in ("00000", "00001"):
        m3fd.add(stem, f"Ir/{stem}.PNG", f"Vis/{stem}.png")
        m3fd.voc(f"Annotation/{stem}.xml", ("People", 4, 6, 12, 18), ("Truck", 0, 0, 16, 12))
    (m3fd.root / "Vis" / "Thumbs.db").write_bytes(b"\xd0\xcf")
    found = m3fd.check(find_pairs(m3fd.root))
    assert said() == "M3FD (Ir/, Vis/): 2 pairs, boxes in Annotation/\n"
    assert boxes(found["00001"]) == [[0, 4, 6, 12, 18], [5, 0, 0, 16, 12]]
    for stem in m3fd.pairs:
        m3fd.text(f"labels/{stem}.txt", "3 0.25 0.5 0.25 0.5")
    (m3fd.root / "Annotation" / "00000.xml").unlink()
    first, second = find_pairs(m3fd.root)
    assert (boxes(first), boxes(second)[0]) == ([[3, 4, 6, 12, 18]], [0, 4, 6, 12, 18])


def test_m3fd_of_tardal_with_meta_and_what_its_training_leaves_behind(mini: Mini, said: Said):
    m3fd = mini(DatasetKind.M3FD, "m3fd")
    for stem in ("00000", "00719", "04203"):
        m3fd.add(stem, f"ir/{stem}.png", f"vi/{stem}.png")
        m3fd.text(f"labels/{stem}.txt", "3 0.25 0.5 0.25 0.5")
        for left in ("mask", "iqa/ir", "iqa/vi"):
            write_picture(m3fd.root / left / f"{stem}.png", visible(9))
    m3fd.text("meta/train.txt", "00000.png", "04203.png")
    m3fd.text("meta/val.txt", "00719.png")
    m3fd.text("meta/pred.txt", "00719.png")
    found = m3fd.check(find_pairs(m3fd.root))
    assert all(files.label is None and boxes(files) == [[3, 4, 6, 12, 18]] for files in found.values())
    said()
    m3fd.check(find_pairs(m3fd.root, split="train"), "00000", "04203")
    assert said() == "M3FD (ir/, vi/): 2 pairs, chosen by meta/train.txt, boxes in labels/\n"
    m3fd.check(find_pairs(m3fd.root, split="pred"), "00719")


def test_m3fd_split_below_and_sage_without_labels(mini: Mini):
    m3fd = mini(DatasetKind.M3FD, "a/M3FD_Detection")
    for split, stem in (("train", "1"), ("test", "2")):
        m3fd.add(f"{split}__{stem}", f"ir/{split}/{stem}.png", f"vi/{split}/{stem}.png")
        m3fd.text(f"labels/{split}/{stem}.txt", "0 0.25 0.5 0.25 0.5")
    found = m3fd.check(find_pairs(m3fd.root))
    assert boxes(found["test__2"]) == [[0, 4, 6, 12, 18]]
    sage = mini(DatasetKind.M3FD, "b/M3FD_4200")
    sage.add("00000", "Ir/00000.png", "Vis/00000.png")
    assert sage.check(find_pairs(sage.root))["00000"].boxes is None


def test_m3fd_without_its_visible_pictures(mini: Mini):
    m3fd = mini(DatasetKind.M3FD, "download")
    for number in range(8):
        write_picture(m3fd.root / "Ir" / f"{number:05}.png", infrared(0))
        m3fd.voc(f"Annotation/{number:05}.xml")
    wanted = (
        r"Ir: 8 infrared pictures without visible partner: 00000, 00001, 00002, 00003, 00004 and 3 more.*"
        r"this looks like M3FD: it circulates as \{Ir,Vis,Annotation\}/"
    )
    with pytest.raises(InputError, match=wanted):
        find_pairs(m3fd.root)


def test_recognised_but_empty_says_what_belongs_there(tmp_path: Path):
    (tmp_path / "LLVIP" / "images").mkdir(parents=True)
    write_picture(tmp_path / "LLVIP" / "images" / "1.png", visible(0))
    with pytest.raises(InputError, match=r"no infrared or visible folder .*this looks like LLVIP: .*Annotations"):
        find_pairs(tmp_path / "LLVIP")


def test_roadscene(mini: Mini, said: Said):
    road = mini(DatasetKind.ROADSCENE, "RoadScene-master")
    for stem in ("FLIR_00006", "FLIR_video_00069"):
        road.add(stem, f"cropinfrared/{stem}.jpg", f"crop_LR_visible/{stem}.jpg")
        write_picture(road.root / "infrared" / f"{stem}.png", infrared(9, (30, 40)))
        write_picture(road.root / "crop_HR_visible" / f"{stem}.jpg", visible(9, (60, 80)))
    for folder in ("cropinfrared", "infrared"):
        (road.root / folder / "Thumbs.db").write_bytes(b"\xd0\xcf")
    road.check(find_pairs(road.root))
    assert said() == "RoadScene (cropinfrared/, crop_LR_visible/): 2 pairs\n"


def test_tno_of_linfeng(mini: Mini, said: Said):
    tno = mini(DatasetKind.TNO, "TNO")
    for stem in ("01", "02"):
        tno.add(stem, f"ir/{stem}.png", f"vi/{stem}.png")
    tno.check(find_pairs(tno.root))
    assert said() == "TNO (ir/, vi/): 2 pairs\n"


def test_tno_as_distributed(mini: Mini, said: Said):
    tno = mini(DatasetKind.TNO, "TNO_Image_Fusion_Dataset")
    scenes = {
        "tank": ("LWIR.tif", "Vis.tif"),
        "Athena_images/2_men_in_front_of_house": ("IR_meting003_g.bmp", "VIS_meting003_r.bmp"),
        "Athena_images/APC_1/view_2": ("IR_fk_ref_01_005.bmp", "VIS_fk_ref_01_005.bmp"),
        "Athena_images/APC_2/view_1": ("2_fk_ge_03_005.bmp", "1_fk_ge_03_005.bmp"),
        "Athena_images/airplane_in_trees": ("ir.bmp", "vis.bmp"),
        "Athena_images/bunker": ("IR_bunker_g.bmp", "bunker_r.bmp"),
        "Athena_images/heather": ("IR_hei_vis_g.bmp", "VIS_hei_vis_r.bmp"),
        "DHV_images/wall": ("IR_163rad.bmp", "VIS_163dhvR.BMP"),
        "Triclobs_images/Kaptein_01": ("IR01.bmp", "Vis01.bmp"),
        "Triclobs_images/Marne_04": ("Marne_04_IR.bmp", "Marne_04_Vis.bmp"),
        "Triclobs_images/barbed_wire_2": ("c_LWIR-New_24RGB_1110.tif", "a_VIS-New_24RGB_1110.tif"),
        "Triclobs_images/jeep_in_smoke": ("LWIR_B.bmp", "VIS_R.bmp"),
    }
    for scene, (ir, vis) in scenes.items():
        tno.add(scene.replace("/", "__"), f"{scene}/{ir}", f"{scene}/{vis}")
    for near in ("Marne_04/Marne_04_II.bmp", "jeep_in_smoke/NIR_G.bmp", "Kaptein_01/NIR01.bmp", "House/NIR.bmp"):
        write_picture(tno.root / "Triclobs_images" / near, infrared(9))
    write_picture(tno.root / "Triclobs_images" / "House" / "VIS.bmp", visible(9))
    sequences = {
        "FEL_images__Nato_camp_sequence__1807": ("thermal/1807i.bmp", "visual/1807v.bmp"),
        "DHV_images__Fire_sequence__part_1__2": ("thermal/RAD2.bmp", "dhv/DHV2.bmp"),
        "DHV_images__Fire_sequence__part_2__heli0": ("rad/RADheli0.bmp", "dhv/DHVheli0.bmp"),
    }
    for name, (ir, vis) in sequences.items():
        folder = "/".join(name.split("__")[:-1])
        tno.add(name, f"{folder}/{ir}", f"{folder}/{vis}")
    tno.text("README.txt", "The TNO Image Fusion Dataset")
    tno.check(find_pairs(tno.root))
    assert "15 pairs, 1 scene without an infrared picture left out" in said()
    one = find_pairs(tno.root / "Athena_images" / "bunker")
    assert [files.name for files in one] == ["bunker"]


def test_tno_in_one_folder(mini: Mini):
    tno = mini(DatasetKind.TNO, "TNO")
    for number in (1, 2, 21):
        tno.add(str(number), f"IR{number}.png", f"VIS{number}.png")
    tno.check(find_pairs(tno.root))
    (tno.root / "VIS2.png").unlink()
    with pytest.raises(InputError, match=r"1 infrared pictures without visible partner: 2;.*this looks like TNO"):
        find_pairs(tno.root)


def test_llvip(mini: Mini, said: Said):
    llvip = mini(DatasetKind.LLVIP, "unpacked")
    for split, stem in (("train", "010001"), ("train", "020002"), ("test", "190001")):
        llvip.add(f"{split}__{stem}", f"infrared/{split}/{stem}.jpg", f"visible/{split}/{stem}.jpg")
        llvip.voc(f"Annotations/{stem}.xml", ("person", 4, 6, 12, 18), size=SIZE)
    found = llvip.check(find_pairs(llvip.root))
    assert said() == "LLVIP (infrared/, visible/): 3 pairs, boxes in Annotations/\n"
    assert all(boxes(files) == [[0, 4, 6, 12, 18]] for files in found.values())
    assert {files.name: files.split for files in found.values()}["test__190001"] == "test"
    llvip.check(find_pairs(llvip.root, split="test"), "190001", above="test__")
    (llvip.root / "visible" / "train" / "010001.jpg").unlink()
    with pytest.raises(InputError, match=r"1 infrared pictures without visible partner: 010001.*looks like LLVIP"):
        find_pairs(llvip.root)


@pytest.mark.parametrize("images", ["", "images/"])
def test_kaist(mini: Mini, said: Said, images: str):
    kaist = mini(DatasetKind.KAIST, "kaist-rgbt")
    for place in ("set00/V000", "set00/V001", "set05/V000", "set06/V002"):
        for stem in ("I00000", "I00019"):
            name = f"{place}/{stem}".replace("/", "__")
            kaist.add(name, f"{images}{place}/lwir/{stem}.jpg", f"{images}{place}/visible/{stem}.jpg")
            kaist.text(
                f"annotations/{place}/{stem}.txt", "% bbGt version=3", "cyclist 4 6 8 12 0 0", "person? 1 1 2 2 0 0"
            )
            for side in ("lwir", "visible"):
                kaist.text(f"annotations_paired/{place}/{side}/{stem}.txt", "% bbGt version=3")
    kaist.text("imageSets/train-all-02.txt", "set00/V000/I00019", "set05/V000/I00000")
    found = kaist.check(find_pairs(kaist.root))
    assert said() == "KAIST (lwir/, visible/): 8 pairs, boxes in annotations/\n"
    assert all(boxes(files) == [[2, 4, 6, 12, 18]] for files in found.values())
    train = kaist.check(find_pairs(kaist.root, split="train"), *(name for name in kaist.pairs if "set06" not in name))
    assert {files.split for files in train.values()} == {"train"}
    kaist.check(find_pairs(kaist.root, split="test"), "I00000", "I00019", above="set06__V002__")
    kaist.check(find_pairs(kaist.root, split="set05"), "I00000", "I00019", above="set05__V000__")
    kaist.check(find_pairs(kaist.root, split="train-all-02"), "set00__V000__I00019", "set05__V000__I00000")
    kaist.text("mine.txt", "set00/V001/lwir/I00000.jpg", "set06/V002/I00019")
    listed = find_pairs(kaist.root, list_file=kaist.root / "mine.txt")
    kaist.check(listed, "set00__V001__I00000", "set06__V002__I00019")


def test_kaist_annotations_in_xml_go_before_the_first_ones(mini: Mini):
    kaist = mini(DatasetKind.KAIST, "kaist")
    kaist.add("I00000", "set00/V000/lwir/I00000.jpg", "set00/V000/visible/I00000.jpg")
    kaist.text("annotations/set00/V000/I00000.txt", "% bbGt version=3", "cyclist 0 0 8 12")
    kaist.voc("annotations-xml-15/set00/V000/I00000.xml", ("people", 4, 6, 12, 18))
    assert boxes(kaist.check(find_pairs(kaist.root))["I00000"]) == [[1, 4, 6, 12, 18]]


def test_cleaned_kaist(mini: Mini):
    kaist = mini(DatasetKind.KAIST, "kaist_wash")
    for split in ("train", "test"):
        stem = f"set00_V000_{split}"
        folder = f"kaist_wash_picture_{split}"
        kaist.add(f"{split}__{stem}", f"{folder}/lwir/{stem}.jpg", f"{folder}/visible/{stem}.jpg")
        kaist.voc(f"kaist_wash_annotation_{split}/{stem}.xml", ("person", 4, 6, 12, 18))
    found = kaist.check(find_pairs(kaist.root))
    assert [boxes(files) for files in found.values()] == [[[0, 4, 6, 12, 18]]] * 2
    kaist.check(find_pairs(kaist.root, split="test"), "set00_V000_test", above="test__")


def test_flir_aligned(mini: Mini, said: Said):
    flir = mini(DatasetKind.FLIR, "download/align")
    for number in (2, 8863, 9000):
        stem = f"FLIR_{number:05}"
        flir.add(stem, f"JPEGImages/{stem}_PreviewData.jpeg", f"JPEGImages/{stem}_RGB.jpg")
        flir.voc(f"Annotations/{stem}_PreviewData.xml", ("car", 4, 6, 12, 18), ("dog", 0, 0, 4, 4))
        write_picture(flir.root / "AnnotatedImages" / f"{stem}_PreviewData.jpeg", infrared(9))
        write_picture(flir.root / "AnnotatedImages" / f"{stem}_RGB.jpg", visible(9))
        write_picture(flir.root / "Annotations" / f"{stem}_mask.jpg", infrared(9))
    (flir.root / "JPEGImages" / "Thumbs.db").write_bytes(b"\xd0\xcf")
    flir.text("align_train.txt", "FLIR_00002_PreviewData", "FLIR_08863_PreviewData")
    flir.text("align_validation.txt", "FLIR_09000_PreviewData")
    found = flir.check(find_pairs(flir.root))
    assert said() == "FLIR-aligned (JPEGImages/): 3 pairs, boxes in Annotations/\n"
    assert all(boxes(files) == [[2, 4, 6, 12, 18]] for files in found.values())
    flir.check(find_pairs(flir.root.parent, split="train"), "FLIR_00002", "FLIR_08863")
    assert "2 pairs, chosen by align/align_train.txt" in said()
    for split in ("val", "validation"):
        flir.check(find_pairs(flir.root, split=split), "FLIR_09000")


def test_flir_aligned_with_coco_annotations(mini: Mini, said: Said):
    flir = mini(DatasetKind.FLIR, "FLIR_align")
    for split, number in (("train", 2), ("train", 3), ("test", 4)):
        stem = f"FLIR_{number:05}"
        flir.add(f"{split}__{stem}", f"{split}/{stem}_PreviewData.jpeg", f"{split}/{stem}_RGB.jpg")
    for split, numbers in (("train", (2, 3)), ("test", (4,))):
        content = {
            "images": [
                {"id": n, "file_name": f"FLIR_{n:05}_PreviewData.jpeg", "height": SIZE[0], "width": SIZE[1]}
                for n in numbers
            ],
            "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "person"}],
            "annotations": [{"image_id": n, "category_id": 1 + n % 2, "bbox": [n, 6, 8, 12]} for n in numbers],
        }
        flir.text(f"Annotation_{split}.json", json.dumps(content))
    flir.text("config.json", "{not json, and none of our business")
    found = flir.check(find_pairs(flir.root))
    assert "3 pairs, boxes in Annotation_t" in said()
    assert boxes(found["train__FLIR_00002"]) == [[2, 2, 6, 10, 18]]
    assert boxes(found["train__FLIR_00003"]) == [[0, 3, 6, 11, 18]]
    assert boxes(found["test__FLIR_00004"]) == [[2, 4, 6, 12, 18]]
    flir.check(find_pairs(flir.root, split="test"), "FLIR_00004", above="test__")


def framed(picture: np.ndarray) -> np.ndarray:
    return cv2.copyMakeBorder(picture, 100, 100, 100, 100, cv2.BORDER_CONSTANT, value=(255, 255, 255))


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("bordered", [True, False])
def test_dronevehicle(mini: Mini, said: Said, nested: bool, bordered: bool):
    drone = mini(DatasetKind.DRONEVEHICLE, "drone")
    for split in ("train", "val", "test"):
        above = f"{split}/" if nested else ""
        for stem in ("00001", "00002"):
            name = f"{split}__{stem}"
            ir, vis = f"{above}{split}imgr/{stem}.png", f"{above}{split}img/{stem}.png"  # JPEG would smear
            drone.add(name, ir, vis)
            for path, picture in (ir, infrared), (vis, visible):
                made = picture(drone.pairs[name])
                write_picture(drone.root / path, framed(made) if bordered else made)
            polygon = "<x1>104</x1><y1>108</y1><x2>108</x2><y2>106</y2><x3>112</x3><y3>116</y3><x4>108</x4><y4>118</y4>"
            drone.text(
                f"{above}{split}labelr/{stem}.xml",
                f"<annotation><size><width>{SIZE[1] + 200}</width><height>{SIZE[0] + 200}</height></size>"
                f"<object><name>feright car</name><polygon>{polygon}</polygon></object></annotation>",
            )
            drone.voc(f"{above}{split}label/{stem}.xml", ("car", 100, 100, 104, 104))
    found = drone.check(find_pairs(drone.root))
    cut = ", the white border of 100 pixels cut away" if bordered else ""
    assert said() == f"DroneVehicle (testimgr/, testimg/): 6 pairs{cut}, boxes in testlabelr/\n"
    assert all(boxes(files) == [[4, 4, 6, 12, 18]] for files in found.values())
    assert {files.split for files in found.values()} == {"train", "val", "test"}
    drone.check(find_pairs(drone.root, split="val"), "00001", "00002", above="val__")


def test_dronevehicle_with_one_picture_that_has_no_border(mini: Mini):
    drone = mini(DatasetKind.DRONEVEHICLE, "drone")
    for stem in ("1", "2", "3", "4", "5"):
        drone.add(stem, f"trainimgr/{stem}.jpg", f"trainimg/{stem}.jpg")
        for path in (f"trainimgr/{stem}.jpg", f"trainimg/{stem}.jpg"):
            write_picture(drone.root / path, framed(visible(0)) if stem != "2" else visible(0, (224, 232)))
    pairs = {files.name: files for files in find_pairs(drone.root)}
    assert pairs["1"].vis.size() == SIZE
    with pytest.raises(InputError, match=r"2\.jpg: not white within 100 pixels"):
        read_pair(pairs["2"])


def test_vt5000(mini: Mini, said: Said):
    vt = mini(DatasetKind.VT5000, "data")
    for split, stem in (("Train", "1"), ("Train", "2"), ("Test", "1")):
        vt.add(f"{split}__{stem}", f"{split}/T/{stem}.jpg", f"{split}/RGB/{stem}.jpg")
        write_picture(vt.root / split / "T_GRAY" / f"{stem}.png", infrared(9))
        write_picture(vt.root / split / "Edge" / f"{stem}.png", infrared(9))
        write_picture(vt.root / split / "GT" / f"{stem}.png", 255 * vt.ids(f"{split}__{stem}", 2))
    found = vt.check(find_pairs(vt.root))
    assert said() == "VT5000 (T/, RGB/): 3 pairs, saliency maps in GT/\n"
    for name, files in found.items():
        saliency = read_pair(files).saliency
        assert saliency is not None
        np.testing.assert_array_equal(saliency[0].numpy(), vt.ids(name, 2))
        assert files.label is files.boxes is None
    vt.check(find_pairs(vt.root, split="test"), "1", above="Test__")


def test_m3svd_in_frames(mini: Mini, said: Said):
    m3svd = mini(DatasetKind.M3SVD, "M3SVD")
    for split, clip in (("train", "0111_1716"), ("train", "0111_1803"), ("test", "0115_1831")):
        for stem in ("000001", "000002"):
            place = f"{split}/{{}}/{clip}/{stem}.png"
            m3svd.add(f"{split}__{clip}__{stem}", place.format("infrared_Enhance"), place.format("visible_Enhance"))
            write_picture(m3svd.root / place.format("infrared_noise"), infrared(9))
            write_picture(m3svd.root / place.format("visible_Blur"), visible(9))
    m3svd.check(find_pairs(m3svd.root))
    assert said() == "M3SVD (infrared_Enhance/, visible_Enhance/): 6 pairs\n"
    m3svd.check(find_pairs(m3svd.root, split="test"), "000001", "000002", above="test__0115_1831__")


@pytest.fixture
def videos(mini: Mini) -> Miniature:
    """Two clips of five frames, inter-coded."""
    m3svd = mini(DatasetKind.M3SVD, "clips")
    m3svd.tolerance = 16
    size = (48, 64)
    for clip in ("0111_1716", "0111_1803"):
        first = len(m3svd.pairs)
        for side, picture in ("infrared_Enhance", infrared), ("visible_Enhance", visible):
            path = m3svd.root / "train" / side / f"{clip}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, size[::-1])
            for step in range(5):
                frame = picture(first + step, size)
                writer.write(
                    np.ascontiguousarray(np.atleast_3d(frame).repeat(3 // np.atleast_3d(frame).shape[2], 2)[..., ::-1])
                )
            writer.release()
        for step in range(5):
            m3svd.pairs[f"{clip}__{step + 1:06d}"] = first + step
    return m3svd


def test_m3svd_in_videos(videos: Miniature, said: Said):
    found = videos.check(find_pairs(videos.root))
    assert said() == "M3SVD (infrared_Enhance/, visible_Enhance/, frames of videos): 10 pairs\n"
    assert [files.ir.frame for files in found.values()] == [*range(5)] * 2
    assert len({files.vis.stem for files in found.values()}) == 10
    assert {files.split for files in find_pairs(videos.root, split="train")} == {"train"}
    videos.text("list.txt", "0111_1803/000003", "0111_1716__000001")
    listed = find_pairs(videos.root, list_file=videos.root / "list.txt")
    videos.check(listed, "0111_1716__000001", "0111_1803__000003")


def test_several_datasets_in_one_folder(mfnet: Miniature, tmp_path: Path, said: Said):
    for name in ("own", "M3FD"):
        for side, picture in ("ir", infrared(0)), ("vis", visible(0)):
            write_picture(tmp_path / name / "train" / side / "1.png", picture)
    found = find_pairs(tmp_path)
    assert [files.name for files in found] == [
        "M3FD__train__1",
        *(f"ir_seg_dataset__{stem}" for stem in mfnet.pairs),
        "own__train__1",
    ]
    assert recognise(tmp_path) is None
    assert [line.partition(" ")[0] for line in said().splitlines()] == ["M3FD", "MFNet"]
    train = find_pairs(tmp_path, split="train")
    assert [files.name for files in train] == [
        "M3FD__train__1",
        "ir_seg_dataset__00001D",
        "ir_seg_dataset__00003N",
        "own__train__1",
    ]


def test_a_folder_of_ones_own_stays_quiet_and_may_have_lists(tmp_path: Path, said: Said):
    for stem in ("a", "b", "c"):
        write_picture(tmp_path / "own" / "ir" / f"{stem}.png", infrared(0))
        write_picture(tmp_path / "own" / "vis" / f"{stem}.png", visible(0))
    (tmp_path / "own" / "val.txt").write_text("own/ir/c.png\na\n")
    assert recognise(tmp_path / "own") is None
    assert [files.name for files in find_pairs(tmp_path / "own", split="val")] == ["a", "c"]
    assert len(find_pairs(tmp_path / "own")) == 3
    assert said() == ""


def test_datasets_deep_in_a_folder(mini: Mini, said: Said):
    m3fd = mini(DatasetKind.M3FD, "downloads/ivif/M3FD_Detection")
    m3fd.add("00000", "Ir/00000.png", "Vis/00000.png")
    m3fd.check(find_pairs(m3fd.root.parent.parent))
    assert said() == "M3FD (Ir/, Vis/): 1 pair\n"
    assert recognise(m3fd.root.parent.parent) is DatasetKind.M3FD


def test_said_once(mfnet: Miniature, said: Said):
    find_pairs(mfnet.root)
    assert said()
    find_pairs(mfnet.root)
    assert said() == ""


def test_masks_out_of_labels_in_colour(mfnet: Miniature, tmp_path: Path):
    for name in mfnet.pairs:
        write_picture(mfnet.root / "labels" / f"{name}.png", np.array(MFNET_LABELS.colours, np.uint8)[mfnet.ids(name)])
    report = cache_masks(mfnet.root, source=MaskSourceName.LABELS, cache=tmp_path / "cache")
    assert (report.done, report.unlabelled) == (2 * len(mfnet.pairs), [])


@pytest.mark.parametrize("name", ["mfnet", "videos"])
def test_masks_and_scores_of_pictures_that_are_selections(name: str, request: pytest.FixtureRequest, tmp_path: Path):
    data: Miniature = request.getfixturevalue(name)
    report = cache_masks(data.root, source=MaskSourceName.REGIONS, cache=tmp_path / "cache")
    assert (report.pairs, report.images, report.done) == (len(data.pairs), 2 * len(data.pairs), 2 * len(data.pairs))
    again = cache_masks(data.root, source=MaskSourceName.REGIONS, cache=tmp_path / "cache")
    assert (again.done, again.already) == (0, 2 * len(data.pairs))
    scores: Mapping[str, object] = {row.name: row for row in evaluate(data.root, out=tmp_path / "scores").rows}
    assert set(scores) == {"average", "maximum", "visible only", "infrared only"}


def random_picture(seed: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, channels), dtype=np.uint8)


def test_parts_of_a_four_channel_picture(tmp_path: Path):
    path = tmp_path / "00001D.png"
    stored = random_picture(0, channels=4)
    stored[..., 3] //= 2  # a decoder that multiplied alpha in would be found out
    cv2.imwrite(str(path), stored[..., [2, 1, 0, 3]])
    whole, colour, fourth = (SourcePicture(path, part) for part in Part)
    np.testing.assert_array_equal(colour.read(), stored[..., :3])
    np.testing.assert_array_equal(fourth.read(), stored[..., 3])
    np.testing.assert_array_equal(whole.read(), stored[..., :3])
    assert {picture.size() for picture in (whole, colour, fourth)} == {SIZE}
    assert whole.sha256() == file_sha256(path)
    assert len({whole.sha256(), colour.sha256(), fourth.sha256()}) == 3
    assert colour.stem == "00001D"
    assert "fourth channel" in str(fourth)
    write_picture(path, stored[..., :3])
    with pytest.raises(InputError, match="3 channels; an RGB-T picture"):
        fourth.read()


def test_border_is_cut_where_it_is_white_and_refused_where_it_is_not(tmp_path: Path):
    content = random_picture(1)
    framed = np.full((SIZE[0] + 40, SIZE[1] + 40, 3), 255, np.uint8)
    framed[20:-20, 20:-20] = content
    write_picture(tmp_path / "a.png", framed)
    picture = SourcePicture(tmp_path / "a.png", border=20)
    np.testing.assert_array_equal(picture.read(), content)
    assert picture.size() == SIZE
    assert picture.sha256() != SourcePicture(tmp_path / "a.png").sha256()
    framed[30, 2:8] = 0
    framed[:20, 5:40] = 90
    write_picture(tmp_path / "a.png", framed)
    with pytest.raises(InputError, match="not white within 20 pixels"):
        picture.read()


def test_a_selection_is_hashed_once_per_file_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import duskfuse.data.pair_files as module

    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, (64, 48))
    for seed in range(6):
        writer.write(cv2.resize(random_picture(seed), (64, 48)))
    writer.release()
    hashed: list[Path] = []
    monkeypatch.setattr(module, "file_sha256", lambda file: hashed.append(file) or file_sha256(file))
    frames = [SourcePicture(path, frame=number) for number in range(6)]
    first = [frame.sha256() for frame in frames]
    assert len(set(first)) == 6
    assert len(hashed) == 1
    assert (frames[2].stem, frames[2].size()) == ("clip__000003", (48, 64))
    assert frames[5].read().shape == (48, 64, 3)
    path.write_bytes(path.read_bytes() + b"\0")
    assert not set(first) & {frame.sha256() for frame in frames}
    assert len(hashed) == 2
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        frames[0].sha256()
