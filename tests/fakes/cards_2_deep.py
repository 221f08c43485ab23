"""Fakes of heart, phantom and abdominal sets, the second half of `fakes.cards_2`."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from fakes.card_fakes import (
    Expect,
    Fake,
    blob,
    classes,
    colours,
    outline,
    save,
    save_array,
    save_clip,
    save_csv,
    save_json,
    save_text,
    save_xlsx,
    speckle,
    stack,
)
from numpy.random import Generator
from numpy.typing import NDArray

SMALL = (64, 64)


def as_nifti(frames: NDArray[np.uint8], *, turned: bool = False) -> NDArray[np.uint8]:
    """(frames, height, width) in the order of a NIfTI file's indices (x, y, frame); `turned`: by half a turn."""
    return np.transpose(frames[:, ::-1, ::-1] if turned else frames, (2, 1, 0))


# --- heart -------------------------------------------------------------------------------------------------------


def ted_camus(root: Path, rng: Generator) -> None:
    """TED's patient 1 is not the first of CAMUS."""
    save_csv(
        root / "ted2camus.csv", ["ted_id", "camus_id"], ["patient001", "patient0277"], ["patient002", "patient0001"]
    )
    for number in (1, 2):
        top = root / f"TED/database/patient{number:03}"
        save_array(top / f"patient{number:03}_4CH_sequence.nii.gz", as_nifti(stack(rng, 3)))
        save_array(top / f"patient{number:03}_4CH_sequence_gt.nii.gz", as_nifti(np.stack([classes(1, 2, 3)] * 3)))
        save_text(top / f"patient{number:03}_4CH_info.cfg", "ED: 1")


def unity_imaging(root: Path, rng: Generator) -> None:
    """Three frames of two clips, one without the class in its name; the last has no labels."""
    first, second = "4d44" + 60 * "0", "4d44" + 60 * "1"
    for name in (f"01/4d/44/01-{first}-0000", f"01/4d/44/{first}-0007", f"02/4d/44/02-{second}-0001"):
        save(root / f"png-cache/{name}.png", speckle(rng))
    apex = {"type": "point", "x": "40.5", "y": "20.0"}
    curve = {"type": "curve", "x": "10 20 30", "y": "40 50 60"}
    one = {"lv-apex-endo": apex, "curve-lv-endo": curve, "mv-ant-hinge": {"type": "off", "x": "", "y": ""}}
    two = {"lv-apex-endo": apex, "mv-ant-hinge": {"type": "blurred", "x": "", "y": ""}}
    labels = {f"01-{first}-0000.png": {"labels": one}, f"01-{first}-0007.png": {"labels": two}}
    save_json(root / "labels/labels-all.json", labels)
    save_json(root / "labels/labels-train.json", {f"01-{first}-0000.png": {"labels": one}})
    save_json(root / "labels/labels-tune.json", {f"01-{first}-0007.png": {"labels": two}})


def echonet_pediatric(root: Path, rng: Generator) -> None:
    """Frame 2 of the table is the second frame; rows of no frame; one patient in both views."""
    top = root / "pediatric_echo_avi/pediatric_echo_avi"
    header, traced = ["FileName", "EF", "Sex", "Age", "Weight", "Height", "Split"], ["FileName", "X", "Y", "Frame"]
    first, second = "CR32a7555-CR32a7582-000039.avi", "CR32a97d9-CR32a97fb-000047.avi"
    square = [(10, 10), (40, 10), (40, 40), (10, 40)]
    for view, names in (("A4C", (first, second)), ("PSAX", (first,))):
        for name in names:
            save_clip(top / view / "Videos" / name, rng, 6, SMALL)
        rows = [[name, 60.5 + k, "F", 7, 20, 110, k] for k, name in enumerate(names)]
        save_csv(top / view / "FileList.csv", header, *rows)
        shapes = [[first, x, y, 2] for x, y in square] + [[first, 0, 0, "No Systolic"], [first, 0, 0, "No Diastolic"]]
        save_csv(top / view / "VolumeTracings.csv", traced, *shapes)


def cardiac_udc(root: Path, rng: Generator) -> None:
    """One frame of the first clip is marked; of the second all, by outlines; the third has no masks."""
    top = root / "cardiacUDC_dataset"
    one = np.zeros((6, 80, 96), np.uint8)
    one[2] = classes(1, 2, 3, 4, 5, 6)
    for case, label, mask in (
        ("patient-1-4", "label", one),
        ("patient-1-5", "label_all_frame", np.stack([outline(value=1)] * 6)),
    ):
        save_array(top / f"Site_G_20/{case}_image.nii.gz", as_nifti(stack(rng, 6), turned=True))
        save_array(top / f"Site_G_20/{case}_{label}.nii.gz", as_nifti(mask, turned=True))
    save_array(top / "Site_R_73/patient-1-4_image.nii.gz", as_nifti(stack(rng, 6), turned=True))
    save_array(top / "label_all_frame/patient-9_label.nii.gz", as_nifti(one))
    save_text(root / "cardiacUDC_dataset.change2zip", "the last part of the archive")


def echocp(root: Path, rng: Generator) -> None:
    mask = np.zeros((6, 80, 96), np.uint8)
    mask[3] = classes(1, 2, 4)
    for key in ("001_r", "001_v", "002_r"):
        save_array(root / f"EchoCP/{key}_image.nii.gz", as_nifti(stack(rng, 6), turned=True))
    save_array(root / "EchoCP/001_r_label.nii.gz", as_nifti(mask, turned=True))
    save_xlsx(root / "echoCP_diagnosis_label.xlsx", ["Idx"], [1])


def cactus(root: Path, rng: Generator) -> None:
    for path in ("A4C/img_1.jpg", "PSAV/img_1.jpg", "Random/r_1.png"):
        save(root / "Images Dataset" / path, speckle(rng))
    save_csv(root / "Grades/A4C_grades.csv", ["image", "grade"], ["img_1.jpg", 7])


# --- phantom, abdomen --------------------------------------------------------------------------------------------


def luss_phantom(root: Path, rng: Generator) -> None:
    for name, values in (("a1", (1, 2, 3)), ("b2", (4, 5))):
        save(root / f"LUSS/images/{name}.png", speckle(rng))
        save(root / f"LUSS/masks/{name}.png", classes(*values))


def aul(root: Path, rng: Generator) -> None:
    """374 has no liver, 229 has it in the outline's file, a doubled folder, the same number in two classes."""
    liver = [[10, 10], [80, 10], [80, 70], [10, 70]]
    mass = [[30, 30], [50, 30], [50, 50], [30, 50]]
    view = [[0, 0], [95, 0], [95, 79], [0, 79]]
    for folder, number, shapes in (
        ("Benign/Benign", 374, {"mass": mass, "outline": view}),
        ("Benign/Benign", 229, {"outline": liver}),
        ("Malignant", 12, {"liver": liver, "mass": mass, "outline": view}),
        ("Normal", 12, {"liver": liver, "outline": view}),
    ):
        save(root / f"{folder}/image/{number}.jpg", speckle(rng))
        for name, points in shapes.items():
            save_json(root / f"{folder}/segmentation/{name}/{number}.json", points)


def fatty_liver(root: Path, rng: Generator) -> None:
    """Three patients with two frames each; arrays of objects inside an object, as MATLAB's struct arrays are."""
    data = np.zeros((1, 3), dtype=[("id", "O"), ("class", "O"), ("fat", "O"), ("images", "O")])
    for k, (number, kind, fat) in enumerate(((1, 0, 3.0), (2, 1, 35.0), (5, 1, 60.0))):
        data[0, k] = (np.array([[number]]), np.array([[kind]]), np.array([[fat]]), stack(rng, 2))
    save_array(root / "dataset_liver_bmodes_steatosis_assessment_IJCARS.mat", {"data": data})


def liver_105us(root: Path, rng: Generator) -> None:
    """1 and 10 are different keys; a mask of another size."""
    for number in (1, 10):
        save(root / f"images/{number} a.png", speckle(rng))
    save(root / "Masks/1 mask.png", blob((48, 40)))
    save(root / "Masks/10 mask.png", blob())


def abdomen_us(root: Path, rng: Generator) -> None:
    """One colour that is no class counts as background; the simulated picture has no annotation."""
    top = root / "abdominal_US"
    save(top / "RUS/images/train/01.png", speckle(rng))
    save(top / "RUS/annotations/train/01.png", colours((100, 0, 100), (255, 255, 0), (0, 0, 255), (255, 0, 0)))
    save(top / "RUS/images/test/01.png", speckle(rng))
    save(top / "RUS/annotations/test/01.png", colours((0, 255, 255), (0, 255, 0), (255, 255, 255), (7, 7, 7)))
    save(top / "AUS/images/train/ct-1.png", speckle(rng))


def _via(path: Path, *rows: tuple[str, dict[str, Any], str]) -> None:
    """Rows (file name, shape, anatomy) as VIA exports them."""
    header = ["filename", "file_size", "file_attributes", "region_count", "region_id"]
    header += ["region_shape_attributes", "region_attributes"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for number, (name, shape, anatomy) in enumerate(rows):
            view = {"Quality": "Fair", "View": "Transverse", "Comments": "n/a"}
            region = {"Anatomy": anatomy} if anatomy else {}
            writer.writerow([name, 1000, json.dumps(view), 1, number, json.dumps(shape), json.dumps(region)])


def polygon(*corners: tuple[int, int]) -> dict[str, Any]:
    return {"name": "polygon", "all_points_x": [x for x, _ in corners], "all_points_y": [y for _, y in corners]}


def kidney_us(root: Path, rng: Generator) -> None:
    """Two byte-identical pictures with one id, ids of five digits, a picture without shapes, no masks but ignored."""
    first, copied, other, bare = (
        "132_IM-0115-17408_anon.png",
        "405_IM-0115-17408_anon.png",
        "115_IM-0474-0001-0002_anon.png",
        "66_IM-0426-0017_anon.png",
    )
    top = root / "kidneyUS_images_14_june_2022"
    same = speckle(rng)
    for name, pixels in ((first, same), (copied, same), (other, speckle(rng)), (bare, speckle(rng))):
        save(top / name, pixels)
    capsule = polygon((10, 10), (80, 10), (80, 70), (10, 70))
    middle = polygon((30, 30), (50, 30), (50, 50), (30, 50))
    _via(
        root / "labels/reviewed_labels_1.csv",
        (first, capsule, "Capsule"),
        (first, middle, "Central Echo Complex"),
        (copied, capsule, "Capsule"),
        (other, middle, "Medulla"),
        (other, polygon((60, 30), (70, 30), (70, 60)), "Cortex"),
        (bare, {}, ""),
    )
    _via(root / "labels/reviewed_labels_2.csv", (first, capsule, "Capsule"))
    save(root / f"labels/reviewed_masks_1/capsule/{first}", blob(value=1))
    header = ["Filename", "Manufacturer", "ManufacturerModelName", "TransducerData"]
    philips = ["132_IM-0115-17408", "Philips Medical Sys…", "EPIQ 7G", "C5_1"]
    siemens = ["115_IM-0474-0001-0002", "SIEMENS", "S2000", ""]
    save_xlsx(root / "OpenKidneyUltrasoundDataSet_TransducerInfo.xlsx", header, philips, siemens)


def gbcu(root: Path, rng: Generator) -> None:
    for number in (1, 2, 3):
        save(root / f"imgs/im{number:05}.jpg", speckle(rng))
    save_text(root / "train.txt", "im00001.jpg,0", "im00002.jpg,2")
    save_text(root / "test.txt", "im00003.jpg,1")
    boxes = {
        "im00001.jpg": [["nml", [10, 10, 50, 60]]],
        "im00002.jpg": [["abn", [5, 5, 90, 70]], ["malg", [20, 20, 40, 40]]],
        "im00003.jpg": [["abn", [5, 5, 90, 70]], ["stn", [20, 20, 30, 30]], ["stn", [40, 20, 50, 30]]],
    }
    save_json(root / "bbox_annot.json", {name: {"dim": [96, 80], "bbs": listed} for name, listed in boxes.items()})


FAKES = {
    "ted_camus": Fake(
        "ted_camus",
        ted_camus,
        Expect(
            samples=6,
            ignored=2,
            masks=6,
            classes={"lv": 6, "myocardium": 6, "left_atrium": 6},
            patients=2,
            clips=2,
        ),
    ),
    "unity_imaging": Fake(
        "unity_imaging",
        unity_imaging,
        Expect(
            samples=3,
            marks={"lv-apex-endo": 2, "curve-lv-endo": 1},
            clips=2,
            splits={"train": 1, "val": 1},
        ),
    ),
    "echonet_pediatric": Fake(
        "echonet_pediatric",
        echonet_pediatric,
        Expect(
            samples=8,  # frames 0 and 5 of three clips, and the traced frame of two
            masks=2,
            classes={"left_ventricle": 2},
            named={"fold": {"0": 6, "1": 2}},
            targets={"ef": [60.5, 61.5]},
            target=[60.5, 61.5],
            patients=2,
            clips=3,
            views={"A4C": 5, "PSAX": 3},
        ),
    ),
    "cardiac_udc": Fake(
        "cardiac_udc",
        cardiac_udc,
        Expect(
            samples=11,  # frames 0 and 5, and the marked ones: 2 of the first clip, all of the second
            ignored=2,
            masks=7,  # frames without a class are not marked
            classes={
                "left_ventricle": 7,
                "left_atrium": 1,
                "right_atrium": 1,
                "right_ventricle": 1,
                "epicardium": 1,
                "left_ventricle_2": 1,
            },
            patients=2,
            clips=3,
            sites={"Site_G_20": 9, "Site_R_73": 2},
        ),
    ),
    "echocp": Fake(
        "echocp",
        echocp,
        Expect(samples=7, ignored=1, masks=1, classes={"chambers": 1}, patients=2, clips=3),
    ),
    "cactus": Fake(
        "cactus",
        cactus,
        Expect(
            samples=3,
            ignored=1,
            labels={"A4C": 1, "PSAV": 1, "Random": 1},
            patients=1,
            views={"A4C": 1, "PSAV": 1},
        ),
    ),
    "luss_phantom": Fake(
        "luss_phantom",
        luss_phantom,
        Expect(
            samples=2,
            masks=2,
            classes={"rib": 1, "pleural_line": 1, "A_line": 1, "B_line": 1, "B_line_confluence": 1},
            patients=1,
        ),
    ),
    "aul": Fake(
        "aul",
        aul,
        Expect(
            samples=4,
            ignored=4,
            masks=3,
            classes={"liver": 2, "mass": 2},
            labels={"benign": 2, "malignant": 1, "normal": 1},
            patients=4,
        ),
    ),
    "fatty_liver": Fake(
        "fatty_liver",
        fatty_liver,
        Expect(
            samples=6,
            labels={"normal": 2, "fatty": 4},
            targets={"steatosis_percent": [3.0, 35.0, 60.0]},
            target=[3.0, 35.0, 60.0],
            patients=3,
            clips=3,
        ),
    ),
    "liver_105us": Fake("liver_105us", liver_105us, Expect(samples=2, masks=2, classes={"tumor": 2})),
    "abdomen_us": Fake(
        "abdomen_us",
        abdomen_us,
        Expect(
            samples=3,
            masks=2,
            classes={
                "liver": 1,
                "kidney": 1,
                "pancreas": 1,
                "vessels": 1,
                "adrenals": 1,
                "gallbladder": 1,
                "bones": 1,
            },
            splits={"train": 2, "test": 1},
            organs={"abdomen_other": 2, "simulated": 1},
            probes={"simulated": 1},
            modes={"B-mode": 2, "simulated": 1},
        ),
    ),
    "kidney_us": Fake(
        "kidney_us",
        kidney_us,
        Expect(
            samples=4,
            ignored=2,
            copies=1,
            masks=3,
            classes={"kidney": 2, "central_echo_complex": 1, "medulla": 1, "cortex": 1},
            patients=3,
            studies=4,
            named={"quality": {"fair": 4}},
            views={"transverse": 4},
            manufacturers={"Philips": 1, "Siemens": 1},
        ),
    ),
    "gbcu": Fake(
        "gbcu",
        gbcu,
        Expect(
            samples=3,
            labels={"normal": 1, "benign": 1, "malignant": 1},
            marks={"nml": 1, "abn": 2, "malg": 1, "stn": 2},
            splits={"train": 2, "test": 1},
        ),
    ),
}
