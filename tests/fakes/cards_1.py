"""Fakes of thyroid, heart, fetal, abdominal, ovary, breast, nerve, lung and muscle sets; see `fakes.card_fakes`."""

import shutil
from pathlib import Path

import numpy as np
from fakes import datasets
from fakes.card_fakes import (
    Expect,
    Fake,
    blob,
    classes,
    coco,
    colours,
    empty,
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

CAMUS = "CAMUS_public/database_nifti"


def busi(root: Path, _rng: Generator) -> None:
    datasets.busi(root)


def hc18(root: Path, _rng: Generator) -> None:
    datasets.hc18(root)


def usgra_seg(root: Path, _rng: Generator) -> None:
    datasets.usgra_seg(root)


def covid_blues(root: Path, _rng: Generator) -> None:
    datasets.covid_blues(root)


def tn3k(root: Path, rng: Generator) -> None:
    """JPEG masks, a number that is in both parts, the folder of another set beside it."""
    top = root / "Thyroid Dataset/tn3k"
    for name in ("trainval-{}/0000", "trainval-{}/0001", "test-{}/0000"):
        save(top / f"{name.format('image')}.jpg", speckle(rng, (120, 90)), "RGB")
        save(top / f"{name.format('mask')}.jpg", blob((120, 90)), quality=75)
    save_json(top / "tn3k-trainval-fold0.json", {"train": [0], "val": [1]})
    save_json(top / "tn3k-trainval-fold1.json", {"train": [1], "val": [0]})
    save_text(top / "label4trainval.csv", "0000.jpg,0", "0001.jpg,1")
    save_text(top / "label4test.csv", "0000.jpg,1")
    save(root / "Thyroid Dataset/tg3k/thyroid-image/0000.jpg", speckle(rng))


def ddti(root: Path, rng: Generator) -> None:
    """Both forms: mask files, and outlines in an XML one of which is empty."""
    top = root / "DDTI/1_or_data"
    for name in ("0000.PNG", "0001.PNG"):
        save(top / "image" / name, speckle(rng, (90, 70)))
        save(top / "mask" / name, blob((90, 70)))
    save_csv(top / "category.csv", ("ID", "CATE"), ("0000.PNG", 1), ("0001.PNG", 0))
    original = root / "ddti_original"
    for k in (1, 2):
        save(original / f"12_{k}.jpg", speckle(rng, (140, 90)))
    corners = ((30, 20), (90, 20), (90, 60), (30, 60))
    points = ", ".join(f'{{"x": {x}, "y": {y}}}' for x, y in corners)
    save_text(
        original / "12.xml",
        '<?xml version="1.0" encoding="utf-8" standalone="yes"?>',
        "<case><number>12</number><age>49</age><sex>F</sex><composition>solid</composition><tirads>4a</tirads>",
        f'<mark><image>1</image><svg>[{{"points": [{points}], "regionType": "freehand"}}]</svg></mark>',
        "<mark><image>2</image><svg></svg></mark></case>",
    )


def camus(root: Path, rng: Generator) -> None:
    """Two half sequences with masks, partly off the echo, one ending in diastole; stills that repeat a frame."""
    for patient, view, size, frames in (("patient0001", "2CH", (40, 50), 4), ("patient0002", "4CH", (44, 48), 3)):
        folder = root / CAMUS / patient
        echo = stack(rng, frames, size)
        echo[:, :10] = 0  # no echo where some of the mask is
        echo[:, :, -1] = 255  # tells left from right
        mask = np.repeat(classes(1, 2, 3, size=size)[None], frames, axis=0)
        mask[:, :20, :8] = 1
        for name, array in (("half_sequence", echo), ("half_sequence_gt", mask)):
            save_array(folder / f"{patient}_{view}_{name}.nii.gz", array.transpose(2, 1, 0).copy())
        if view == "2CH":
            save_array(folder / f"{patient}_{view}_ED.nii.gz", echo[0].T.copy())
            save_array(folder / f"{patient}_{view}_ED_gt.nii.gz", mask[0].T.copy())
    words = ("ED: 1", "ES: 4", "NbFrame: 4", "Sex: F", "Age: 56", "ImageQuality: Good", "EF: 55", "FrameRate: 51.4")
    save_text(root / CAMUS / "patient0001/Info_2CH.cfg", *words)
    save_text(root / CAMUS / "patient0002/Info_4CH.cfg", "ED: 3", "ES: 1")
    save_text(root / "CAMUS_public/database_split/subgroup_training.txt", "patient0001")
    save_text(root / "CAMUS_public/database_split/subgroup_testing.txt", "patient0002")


def echonet_dynamic(root: Path, rng: Generator) -> None:
    """Three clips: two traced frames, none, one."""
    top = root / "EchoNet-Dynamic"
    names = ("0X100009310A3BD7FC", "0X1002E8FBACD08477", "0X1005D03EED19C65B")
    for name in names:
        save_clip(top / f"Videos/{name}.avi", rng, 12, (112, 112), fps=50)
    header = ("FileName", "EF", "ESV", "EDV", "FrameHeight", "FrameWidth", "FPS", "NumberOfFrames", "Split")
    rows = [
        (name, 50.5 + k, 30 + k, 80 + k, 112, 112, 50, 12, ("TRAIN", "VAL", "TEST")[k]) for k, name in enumerate(names)
    ]
    save_csv(top / "FileList.csv", header, *rows)
    tracings = [
        (f"{name}.avi", *row, frame) for name, frame in ((names[0], 2), (names[0], 7), (names[2], 0)) for row in trace()
    ]
    save_csv(top / "VolumeTracings.csv", ("FileName", "X1", "Y1", "X2", "Y2", "Frame"), *tracings)


def trace() -> list[tuple[float, float, float, float]]:
    """A long axis and 20 lines across it, as EchoNet writes an outline: 21 rows of x1, y1, x2, y2."""
    across = [(40.0 - k / 2, 30.0 + 2 * k, 70.0 + k / 2, 30.0 + 2 * k) for k in range(20)]
    return [(5.0, 5.0, 100.0, 108.0), *across]  # the axis leaves the outline: drawn as one it would show


def fetal_planes(root: Path, rng: Generator) -> None:
    """A header with a blank at its end, semicolons, RGB and grey."""
    top = root / "FETAL_PLANES_ZENODO"
    rows = (
        ("Patient00001_Plane1_1_of_2", 1, "Other", "Not A Brain", "Op. 1", "Other", 1),
        ("Patient00001_Plane1_2_of_2", 1, "Other", "Not A Brain", "Op. 1", "Other", 1),
        ("Patient00002_Plane3_1_of_1", 2, "Fetal brain", "Trans-thalamic", "Op. 2", "Voluson E6", 1),
        ("Patient01001_Plane5_1_of_1", 1001, "Maternal cervix", "Not A Brain", "Other", "Aloka", 0),
    )
    for k, row in enumerate(rows):
        save(top / f"Images/{row[0]}.png", speckle(rng), "RGB" if k % 2 else "L")
    header = ("Image_name", "Patient_num", "Plane", "Brain_plane", "Operator", "US_Machine", "Train ")
    save_csv(top / "FETAL_PLANES_DB_data.csv", header, *rows, separator=";")
    save_xlsx(top / "FETAL_PLANES_DB_data.xlsx", header, *rows)


def usanotai(root: Path, rng: Generator) -> None:
    """64 x 64 RGBA, two hyphens, a byte copy in the test set."""
    names = ("train/bladder-0000", "train/liver-0001", "train/spleen-0050", "test/spleen-0051", "test/bowel--0057")
    for name in (*names, "test/kidney-0052"):
        save(root / f"{name}.png", speckle(rng, (64, 64)), "RGBA")
    shutil.copy(root / "test/spleen-0051.png", root / "test/spleen--0056.png")
    save_text(root / "README.md", "# USAnotAI")


def mmotu(root: Path, rng: Generator) -> None:
    """Colour masks beside binary ones, names in capitals, two blanks in the class files."""
    top = root / "OTU_2d"
    for number, colour in (("1", (64, 0, 0)), ("2", (0, 0, 128))):
        save(top / f"images/{number}.JPG", speckle(rng), "RGB")
        save(top / f"annotations/{number}.PNG", colours(colour))
        save(top / f"annotations/{number}_binary.PNG", blob())
    save_text(top / "train.txt", "1")
    save_text(top / "val.txt", "2")
    save_text(top / "train_cls.txt", "1.JPG  0")
    save_text(top / "val_cls.txt", "2.JPG  7")


def mmotu_sample(root: Path, rng: Generator) -> None:
    """UltraSam's sample: PNG with COCO outlines, one as a polygon and one as run lengths."""
    names = [f"test.MMOTU_2d__0000{k}.png" for k in range(2)]
    for name in names:
        save(root / "sample_images" / name, speckle(rng), "RGB")
    shapes = [(0, "object", (20, 20, 60, 20, 60, 60, 20, 60)), (1, "object", (10, 10, 30, 10, 30, 40, 10, 40))]
    content = coco([(name, (96, 80)) for name in names], shapes)
    # Column by column: 20 columns without, then 10 of 30 rows, each from row 5.
    counts = [20 * 80 + 5, *[30, 50] * 9, 30, 45 + 66 * 80]
    content["annotations"][1]["segmentation"] = {"size": [80, 96], "counts": counts}
    save_json(root / "sample_coco_MMOTU2D.json", content)


def busbra(root: Path, rng: Generator) -> None:
    """Two views of one case; folds counted from 1."""
    top = root / "BUSBRA"
    names = ("0001-l", "0001-r", "0004-s")
    for name in names:
        save(top / f"Images/bus_{name}.png", speckle(rng))
        save(top / f"Masks/mask_{name}.png", blob())
    header = ("ID", "Case", "Histology", "Pathology", "BIRADS", "Device", "Width", "Height", "Side", "BBOX")
    findings = ((1, "Cyst", "benign", 2), (1, "Cyst", "benign", 2), (4, "IDC", "malignant", 5))
    rows = [
        (f"bus_{name}", *finding, "GE Logiq 7", 96, 80, "left", "[24, 20, 48, 40]")
        for name, finding in zip(names, findings, strict=True)
    ]
    save_csv(top / "bus_data.csv", header, *rows)
    folds = [(f"bus_{name}", row[1], row[3], fold) for name, row, fold in zip(names, rows, (2, 2, 1), strict=True)]
    save_csv(top / "5-fold-cv.csv", ("ID", "Case", "Pathology", "kFold"), *folds)


def nerve_seg(root: Path, rng: Generator) -> None:
    """Two almost equal frames, one with a nerve and one without; a test image without a person."""
    first = speckle(rng, (58, 42))
    second = first.copy()
    second[0, 0] ^= 1
    for name, picture, mask in (
        ("1_1", first, blob((58, 42))),
        ("1_2", second, empty((58, 42))),
        ("7_33", speckle(rng, (58, 42)), blob((58, 42))),
    ):
        save(root / f"train/{name}.tif", picture)
        save(root / f"train/{name}_mask.tif", mask)
    save(root / "test/1.tif", speckle(rng, (58, 42)))
    save_csv(root / "train_masks.csv", ("subject", "img", "pixels"), (1, 1, "900 4"), (1, 2, ""), (7, 33, "900 4"))


def usenhance2023(root: Path, rng: Generator) -> None:
    """Three pairs, one name in two organs, one image without a partner."""
    for pair in ("thyroid/{}/0001", "kidney/{}/0001", "carotid/{}/0002"):
        for quality in ("low_quality", "high_quality"):
            save(root / f"train_datasets/{pair.format(quality)}.png", speckle(rng))
    save(root / "train_datasets/liver/low_quality/0009.png", speckle(rng))


def covid19_ultrasound(root: Path, rng: Generator) -> None:
    """Four clip formats, odd names, a capital ending, the code around them; two clips of one patient."""
    data = root / "data"
    save_clip(data / "pocus_videos/convex/Cov-Atlas-Day+1.gif", rng, 5, fps=10)
    save_clip(data / "pocus_videos/convex/Pneu_northumbria_0409_set1_vid1.avi", rng, 6)
    save_clip(data / "pocus_videos/convex/Reg_Avi_lung-sliding.MP4", rng, 6)
    save_clip(data / "pocus_videos/linear/Cov-Atlas-pleural2.mp4", rng, 6)
    save(data / "pocus_images/convex/Reg_Avi_Image001.jpg", speckle(rng))
    save(data / "pocus_images/convex/pneu-gred-7.png", speckle(rng), "RGBA")
    save_csv(
        data / "dataset_metadata.csv",
        ("Filename", "Label", "License", "Patient ID / Name"),
        ("Cov-Atlas-Day+1", "COVID-19", "CC BY-NC 4.0", "35"),
        ("Cov-Atlas-pleural2", "COVID-19", "CC BY-NC 4.0", "35"),
        ("Reg_Avi_Image001", "Regular", "", ""),
    )
    save_text(root / "README.md", "# POCOVID")
    save_text(root / "pocovidnet/setup.py", "")


def breast_lesions_usg(root: Path, rng: Generator) -> None:
    """Masks beside images, two kinds of them on one image, a spreadsheet."""
    top = root / "BrEaST-Lesions_USG-images_and_masks"
    for k in (1, 2, 3):
        save(top / f"case00{k}.png", speckle(rng), "RGB")
    save(top / "case001_tumor.png", blob(centre=(0.3, 0.5), radius=0.15))
    save(top / "case001_other1.png", blob(centre=(0.75, 0.5), radius=0.15))
    save(top / "case002_tumor.png", blob())
    save_xlsx(
        root / "BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx",
        ("CaseID", "Image_filename", "Age", "BIRADS", "Classification"),
        (1, "case001.png", 57, "4a", "malignant"),
        (2, "case002.png", 43, 2, "benign"),
        (3, "case003.png", 50, 1, "normal"),
    )


def bus_uclm(root: Path, rng: Generator) -> None:
    """The mask's colour is the class; two frames of one patient."""
    masks = {"ALWI_000": (0, 255, 0), "ALWI_001": (0, 0, 0), "CHOO_000": (255, 0, 0)}
    for name, colour in masks.items():
        save(root / f"BUS-UCLM/images/{name}.png", speckle(rng))
        save(root / f"BUS-UCLM/masks/{name}.png", colours(colour))
    save_csv(root / "BUS-UCLM/INFO.csv", ("Image", "Label"), ("ALWI_000.png", "Benign"))


def bus_uc(root: Path, rng: Generator) -> None:
    """A mask of another size; a folder that repeats an image."""
    top = root / "BUS_UC"
    save(top / "Benign/images/001.png", speckle(rng))
    save(top / "Benign/masks/001.png", blob())
    save(top / "Malignant/images/001.png", speckle(rng))
    save(top / "Malignant/masks/001.png", blob((48, 40)))
    (top / "All/images").mkdir(parents=True)
    shutil.copy(top / "Benign/images/001.png", top / "All/images/001.png")


def timtrack_muscle(root: Path, rng: Generator) -> None:
    """A close crop and three screens; the first set's spreadsheet and another that is not read."""
    top = root / "TimTrack paper"
    save(top / "dataset 1/S1/S1_L20_step_025.png", speckle(rng, (514, 458)))
    save(top / "dataset 2/jumping/gastroc_jumping_048.png", screen(rng, (800, 600), (112, 62, 688, 519)))
    isokinetic = screen(rng, (1665, 921), (379, 95, 1287, 819))
    save(top / "dataset 3/030/p6_isokinetic030_01_push_01_10.jpg", isokinetic, quality=95)
    save(top / "dataset 4/SampleB/GM_P_1.bmp", screen(rng, (800, 600), (120, 70, 746, 506)))
    header = ("subject", "leg", "name", "alpha", "betha", "spoint", "dpoint", "height")
    save_xlsx(
        top / "dataset 1/dataset1_for_manual_estimation.xlsx",
        header,
        (1, "L", 25, 9.86, -6.17, 99, 317, 218),
        sheet="TZ",
    )
    save_xlsx(
        top / "dataset 2/dataset2_for_manual_estimation_obs1.xlsx", ("image", "alpha"), (48, 11.07), sheet="jumping"
    )


def screen(rng: Generator, size: tuple[int, int], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """A scan area (x0, y0, x1, y1) on a black screen with a bar of text above it, (height, width, 3)."""
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    x0, y0, x1, y1 = box
    picture[y0:y1, x0:x1] = speckle(rng, (x1 - x0, y1 - y0))[..., None]
    picture[8:16, 20:160:4] = 220
    return picture


FAKES = {
    "breast_lesions_usg": Fake(
        "breast_lesions_usg",
        breast_lesions_usg,
        Expect(
            samples=3,
            masks=2,
            classes={"tumor": 2, "other_lesion": 1},
            labels={"malignant": 1, "benign": 1, "normal": 1},
            named={"birads": {"4a": 1, "2": 1, "1": 1}},
            patients=3,
        ),
    ),
    "bus_uc": Fake(
        "bus_uc",
        bus_uc,
        Expect(samples=2, ignored=1, masks=2, classes={"tumour": 2}, labels={"benign": 1, "malignant": 1}),
    ),
    "bus_uclm": Fake(
        "bus_uclm",
        bus_uclm,
        Expect(
            samples=3,
            ignored=1,
            masks=3,
            classes={"benign": 1, "malignant": 1},
            labels={"benign": 1, "normal": 1, "malignant": 1},
            patients=2,
        ),
    ),
    "busbra": Fake(
        "busbra",
        busbra,
        Expect(
            samples=3,
            masks=3,
            classes={"tumour": 3},
            labels={"benign": 2, "malignant": 1},
            named={"birads": {"2": 2, "5": 1}, "fold5": {"2": 2, "1": 1}},
            patients=2,
            views={"l": 1, "r": 1, "s": 1},
        ),
    ),
    "busi": Fake(
        "busi",
        busi,
        Expect(
            samples=4,
            copies=1,
            masks=4,
            classes={"lesion": 3},  # the one of a normal breast is empty
            labels={"benign": 2, "malignant": 1, "normal": 1},
        ),
    ),
    "camus": Fake(
        "camus",
        camus,
        Expect(
            samples=7,  # of two half sequences
            ignored=2,  # a still and its mask
            masks=7,
            classes={"lv_endocardium": 7, "lv_myocardium": 7, "left_atrium": 7},
            named={"image_quality": {"good": 4}},
            targets={"ef": [55.0], "ed_frame": [1.0, 3.0], "es_frame": [1.0, 4.0]},
            target=[55.0],
            patients=2,
            clips=2,
            splits={"train": 4, "test": 3},
            views={"A2C": 4, "A4C": 3},
        ),
    ),
    "covid19_ultrasound": Fake(
        "covid19_ultrasound",
        covid19_ultrasound,
        Expect(
            samples=9,  # every fifth frame: 1 of 5, 2 of 6 three times, and two stills
            ignored=2,
            labels={"covid": 3, "pneumonia": 3, "regular": 3},
            patients=5,  # two clips are of one
            clips=4,
            probes={"convex": 7, "linear": 2},
        ),
    ),
    "covid_blues": Fake(
        "covid_blues",
        covid_blues,
        Expect(
            samples=8,  # every fifth of 6 frames, of 4 clips
            ignored=1,
            copies=3,  # the maker draws one clip four times
            clips=4,
            patients=2,
            views={"blue_point_L1": 2, "blue_point_R1": 4, "blue_point_L2": 2},
            named={
                "severity": {"0": 2, "1": 2, "2": 2, "3": 2},
                "a_lines": {"yes": 4, "no": 4},
                "b_lines": {"yes": 4, "no": 4},
                "covid": {"yes": 6, "no": 2},
            },
            targets={"spo2_without_oxygen": [91.0, 98.0]},
        ),
    ),
    "ddti": Fake(
        "ddti",
        ddti,
        Expect(
            samples=4,
            ignored=1,
            masks=3,  # two files, one outline; the other outline is empty
            classes={"nodule": 3},
            named={"tirads": {"4a": 2}},
            patients=1,
        ),
    ),
    "echonet_dynamic": Fake(
        "echonet_dynamic",
        echonet_dynamic,
        Expect(
            samples=8,  # frames 0 and 10 of three clips, and the traced 2 and 7; 0 is traced in the third
            masks=3,
            classes={"left_ventricle": 3},
            targets={"ef": [50.5, 51.5, 52.5], "esv_ml": [30.0, 31.0, 32.0], "edv_ml": [80.0, 81.0, 82.0]},
            target=[50.5, 51.5, 52.5],
            patients=3,
            clips=3,
            splits={"train": 4, "val": 2, "test": 2},
        ),
    ),
    "fetal_planes": Fake(
        "fetal_planes",
        fetal_planes,
        Expect(
            samples=4,
            ignored=1,
            labels={"other": 2, "fetal_brain": 1, "maternal_cervix": 1},
            named={"brain_plane": {"not_a_brain": 3, "trans_thalamic": 1}},
            patients=3,
            splits={"train": 3, "test": 1},
            organs={"fetal_body": 2, "fetal_head": 1, "maternal_cervix": 1},
        ),
    ),
    "hc18": Fake(
        "hc18",
        hc18,
        Expect(
            samples=4,
            masks=3,
            classes={"head": 3},
            patients=3,
            splits={"train": 3, "test": 1},
            targets={"head_circumference_mm": [150.5, 151.5, 152.5]},
            target=[150.5, 151.5, 152.5],
        ),
    ),
    "mmotu": Fake(
        "mmotu",
        mmotu,
        Expect(
            samples=2,
            ignored=2,
            masks=2,
            classes={"chocolate_cyst": 1, "high_grade_serous": 1},
            labels={"chocolate_cyst": 1, "high_grade_serous": 1},
            splits={"train": 1, "test": 1},
        ),
    ),
    "mmotu:sample": Fake("mmotu", mmotu_sample, Expect(samples=2, masks=2, classes={"lesion": 2})),
    "nerve_seg": Fake(
        "nerve_seg",
        nerve_seg,
        Expect(
            samples=4,
            ignored=1,
            masks=3,
            classes={"brachial_plexus": 2},  # the third is empty
            labels={"nerve": 2, "no_nerve": 1},
            patients=2,
            splits={"train": 3, "test": 1},
        ),
    ),
    "timtrack_muscle": Fake(
        "timtrack_muscle",
        timtrack_muscle,
        Expect(
            samples=4,
            ignored=1,
            targets={"fascicle_angle_deg": [9.86], "aponeurosis_angle_deg": [-6.17], "thickness_px": [218.0]},
            patients=3,
            clips=3,
            views={"vastus_lateralis": 1, "gastrocnemius_lateralis": 1, "gastrocnemius_medialis": 2},
        ),
    ),
    "tn3k": Fake(
        "tn3k",
        tn3k,
        Expect(
            samples=3,
            ignored=1,
            masks=3,
            classes={"nodule": 3},
            labels={"benign": 1, "malignant": 2},
            named={"fold": {"1": 1}},
            splits={"train": 1, "val": 1, "test": 1},
        ),
    ),
    "usanotai": Fake(
        "usanotai",
        usanotai,
        Expect(
            samples=7,
            ignored=1,
            copies=1,
            labels={"bladder": 1, "liver": 1, "spleen": 3, "bowel": 1, "kidney": 1},
            organs={"bladder": 1, "liver": 1, "spleen": 3, "bowel": 1, "kidney": 1},
            splits={"train": 3, "test": 4},
        ),
    ),
    "usenhance2023": Fake(
        "usenhance2023",
        usenhance2023,
        Expect(
            samples=7,
            named={"quality": {"low": 4, "high": 3}},
            studies=4,
            organs={"thyroid": 2, "kidney": 2, "carotid_artery": 2, "liver": 1},
        ),
    ),
    "usgra_seg": Fake("usgra_seg", usgra_seg, Expect(samples=2, masks=2, classes={"nerve": 2, "vessel": 2})),
}
