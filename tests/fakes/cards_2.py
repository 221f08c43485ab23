"""Fakes of breast and neck sets; those of hearts and abdomens are in `fakes.cards_2_deep`. See `fakes.card_fakes`."""

import json
from pathlib import Path

import numpy as np
from fakes import cards_2_deep
from fakes.card_fakes import (
    Expect,
    Fake,
    blob,
    classes,
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
from fakes.cards_2_deep import SMALL, as_nifti
from numpy.random import Generator

# --- breast ------------------------------------------------------------------------------------------------------


def buid_qamebi(root: Path, rng: Generator) -> None:
    for label, number in (("Benign", 1), ("Benign", 12), ("Malignant", 1)):
        save(root / f"{label}/{number} {label} Image.bmp", speckle(rng), "RGB")
        save(root / f"{label}/{number} {label} Mask.tif", blob())
    save(root / "Benign/1 Benign Lesion.bmp", speckle(rng))


def bus_dataset_b(root: Path, rng: Generator) -> None:
    for number in (1, 7):
        save(root / f"BUS/original/{number:06}.png", speckle(rng))
        save(root / f"BUS/GT/{number:06}.png", blob())
    save_xlsx(root / "BUS/DatasetB.xlsx", ["Image", "Type", "Diagnosis"], [1, "Benign", "x"], [7, "Malignant", "y"])
    save_text(root / "BUS_ReleaseAgreement.pdf", "The agreement")


def stu_hospital(root: Path, rng: Generator) -> None:
    """Number 1 has a mask of half its size; 11 must not take it."""
    save(root / "Hospital/Test_Image_1.png", speckle(rng))
    save(root / "Hospital/mask_1.png", blob((48, 40)))
    save(root / "Hospital/Test_Image_11.png", speckle(rng), "RGB")
    save(root / "Hospital/mask_11.png", blob(), "RGB")
    save(root / "demo/Test_Image_10.png", speckle(rng))
    save(root / "Dataset B/BUS/original/000001.png", speckle(rng))
    save_text(root / "README.md", "STU-Hospital")


def breast_s1(root: Path, rng: Generator) -> None:
    """The same name in both parts; the third picture's mask has both classes, the fourth has no mask."""
    for part, number, values in (("Training", 1, [127]), ("Training", 2, [255]), ("Testing", 1, [127, 255])):
        save(root / f"Data/{part}DataSet/images/{number}.jpg", speckle(rng))
        save(root / f"Data/{part}DataSet/Labels/{number}.png", classes(*values))
    save(root / "Data/TestingDataSet/images/2.jpg", speckle(rng))
    save(root / "Data/TrainingDataSet/LabelsGeneral/1.png", blob())


# --- neck --------------------------------------------------------------------------------------------------------


def tg3k(root: Path, rng: Generator) -> None:
    """JPEG masks, grey at their edges; numbers with a gap, because the split counts positions."""
    for number in (0, 1, 5):
        save(root / f"Thyroid Dataset/tg3k/thyroid-image/{number:04}.jpg", speckle(rng))
        save(root / f"Thyroid Dataset/tg3k/thyroid-mask/{number:04}.jpg", blob(), quality=60)
    save_json(root / "Thyroid Dataset/tg3k/tg3k-trainval.json", {"train": [0, 2], "val": [1]})
    save(root / "Thyroid Dataset/tn3k/test-image/0000.jpg", speckle(rng))


def tnscui2020(root: Path, rng: Generator) -> None:
    for number in (1, 2, 30):
        save(root / f"TNSCUI2020_train/image/{number}.PNG", speckle(rng))
        save(root / f"TNSCUI2020_train/mask/{number}.PNG", blob())
    save_csv(root / "TNSCUI2020_train/train.csv", ["ID", "CATE"], ["1.PNG", 0], ["2.PNG", 1], ["30.PNG", 1])


def tnscui2020_repackaged(root: Path, rng: Generator) -> None:
    save(root / "tnscui/JPEGImages/1.jpg", speckle(rng))
    save(root / "tnscui/SegmentationClass/1.png", blob())
    save(root / "tnscui/JPEGImages/2.jpg", speckle(rng))
    save(root / "tnscui/SegmentationClass/2.png", blob(value=1))  # class numbers: refused, its image stays


def stanford_thyroid_cine(root: Path, rng: Generator) -> None:
    """Patient 104 has two nodules, whose ids are 104_ and 104_2; a mask with a hole."""
    mask = np.stack([blob(), outline(thickness=3), blob(radius=0.1), blob()])
    content = {
        "image": stack(rng, 4),
        "mask": mask,
        "annot_id": np.array([b"103_", b"103_", b"104_", b"104_2"]),
        "frame_num": np.array([0, 1, 0, 0]),
    }
    save_array(root / "dataset.hdf5", content)
    header = ["annot_id", "age", "sex", "location", "ti-rads_level", "histopath_diagnosis"]
    rows = (
        ["103_", 50, "F", "left", 4, "x"],
        ["104_", 60, "M", "right", "2.0", "y"],
        ["104_2", 60, "M", "left", 5, ""],
    )
    save_csv(root / "metadata.csv", header, *rows)


def segthy(root: Path, rng: Generator) -> None:
    """Two sweeps of volunteer 001, one label named after the case alone; a sweep without label; an MRI."""
    mask = np.stack([classes(), classes(1, 2, 3), classes(1)])
    for case, label in (("001_P1_1_left", "001_P1_1_left_label"), ("001_P3_1_left", "001_P3_1_left")):
        save_array(root / f"US_data/{case}_US.nii", as_nifti(stack(rng, 3), turned=True))
        save_array(root / f"US_thyroid_label/{label}.nii", as_nifti(mask, turned=True))
    save_array(root / "US_data/002_P2_1_right_US.nii", as_nifti(stack(rng, 3), turned=True))
    save_array(root / "MRI_thyroid_label/001.nii", as_nifti(mask))


def ccaui(root: Path, rng: Generator) -> None:
    top = root / "Common Carotid Artery Ultrasound Images"
    for subject in ("202201121748100022VAS", "202201131000000023VAS"):
        for number in (1, 2):
            save(top / f"US images/{subject}_slice_{number}.png", speckle(rng))
            save(top / f"Expert mask images/{subject}_slice_{number}.png", blob())


def cubs(root: Path, rng: Generator) -> None:
    for side in ("0001_L", "0001_R", "0002_L"):
        save(root / f"IMAGES/clin_{side}.tiff", speckle(rng))
    save_text(root / "SEGMENTATIONS/A1/clin_0001_L-LI.txt", "1.0 2.0")
    save_text(root / "CF/clin_0001_L_CF.txt", "0.06")


def brachial_plexus(root: Path, rng: Generator) -> None:
    """Masks are JPEG. The needle's masks begin at frame 1 and have a gap: rank 1 is frame 5."""
    data = root / "data"
    for video, masks in (
        ("Butterfly/us_videos/b240", "Butterfly/ac_masks/b240/b240"),
        ("Sonosite/us_videos/s071", "Sonosite/ac_masks/s071/s071"),
        ("demo/P_021_09", "demo/P_021_09_masks/P_021_09"),
    ):
        save_clip(data / f"{video}.mp4", rng, 6, SMALL)
        for frame in range(6):
            save(data / f"{masks}_{frame:03}.jpg", blob(SMALL, radius=0.1 + 0.05 * frame))
    for frame in (1, 5):
        save(data / f"Sonosite/needle/needle_masks/s071/s071_{frame:03}.jpg", blob(SMALL, (0.2, 0.2), 0.1))
    save_text(data / "Butterfly/bb_annotations/b240.txt", "0,1,2,3,4")
    save_text(root / "README.md", "Brachial plexus")


def _labelme(*shapes: tuple[str, list[list[float]]], path: str = "1.jpg") -> str:
    listed = [{"label": name, "points": points, "shape_type": "polygon"} for name, points in shapes]
    return json.dumps({"shapes": listed, "imagePath": path, "imageHeight": 80, "imageWidth": 96}, ensure_ascii=False)


def ubpd(root: Path, rng: Generator) -> None:
    """Names repeat across folders; one JSON holds bytes that are not UTF-8; one picture has no JSON."""
    square = [[10.0, 10.0], [40.0, 10.0], [40.0, 40.0], [10.0, 40.0]]
    inside = [[15.0, 15.0], [25.0, 15.0], [25.0, 25.0], [15.0, 25.0]]
    away = [[60.0, 50.0], [90.0, 50.0], [90.0, 70.0], [60.0, 70.0]]
    for folder in "abc":
        save(root / folder / "1.jpg", speckle(rng))
    (root / "a/1.json").write_text(_labelme(("shenjing", inside), ("jirouzuzhi", square), ("dongmai", away)))
    (root / "b/1.json").write_bytes(_labelme(("jingmai", square), ("zhifang", away), path="臂丛.jpg").encode("gb18030"))


FAKES = {
    "buid_qamebi": Fake(
        "buid_qamebi",
        buid_qamebi,
        Expect(samples=3, ignored=1, masks=3, classes={"lesion": 3}, labels={"benign": 2, "malignant": 1}),
    ),
    "bus_dataset_b": Fake(
        "bus_dataset_b",
        bus_dataset_b,
        Expect(samples=2, ignored=1, masks=2, classes={"lesion": 2}, labels={"benign": 1, "malignant": 1}),
    ),
    "stu_hospital": Fake("stu_hospital", stu_hospital, Expect(samples=2, ignored=3, masks=2, classes={"lesion": 2})),
    "breast_s1": Fake(
        "breast_s1",
        breast_s1,
        Expect(
            samples=4,
            ignored=1,
            masks=3,
            classes={"benign": 2, "malignant": 2},
            labels={"benign": 1, "malignant": 2},
            splits={"train": 2, "test": 2},
        ),
    ),
    "tg3k": Fake(
        "tg3k",
        tg3k,
        Expect(samples=3, ignored=1, masks=3, classes={"gland": 3}, splits={"train": 2, "val": 1}),
    ),
    "tnscui2020": Fake(
        "tnscui2020",
        tnscui2020,
        Expect(samples=3, masks=3, classes={"nodule": 3}, labels={"benign": 1, "malignant": 2}, patients=3),
    ),
    "tnscui2020:repackaged": Fake(
        "tnscui2020",
        tnscui2020_repackaged,
        Expect(samples=2, quarantined={"mask_value": 1}, masks=1, classes={"nodule": 1}, patients=2),
    ),
    "stanford_thyroid_cine": Fake(
        "stanford_thyroid_cine",
        stanford_thyroid_cine,
        Expect(
            samples=4,
            masks=4,
            classes={"nodule": 4},
            named={"tirads": {"4": 2, "2": 1, "5": 1}},
            patients=2,
            clips=3,
        ),
    ),
    "segthy": Fake(
        "segthy",
        segthy,
        Expect(
            samples=9,
            ignored=1,
            masks=6,
            classes={"thyroid": 4, "carotid": 2, "jugular": 2},
            patients=2,
            clips=3,
        ),
    ),
    "ccaui": Fake("ccaui", ccaui, Expect(samples=4, masks=4, classes={"lumen": 4}, patients=2, clips=2)),
    "cubs": Fake("cubs", cubs, Expect(samples=3, ignored=2, patients=2)),
    "brachial_plexus": Fake(
        "brachial_plexus",
        brachial_plexus,
        Expect(
            samples=6,  # frames 0 and 5 of three clips
            ignored=2,
            masks=6,
            classes={"brachial_plexus": 6, "needle": 1},
            clips=3,
            manufacturers={"Butterfly": 2, "SonoSite": 2},
        ),
    ),
    "ubpd": Fake(
        "ubpd",
        ubpd,
        Expect(samples=3, masks=2, classes={"nerve": 1, "muscle": 1, "artery": 1, "vein": 1, "fat": 1}),
    ),
}
FAKES |= cards_2_deep.FAKES
