"""Fakes of endoscopic, fetal, gynaecologic, prostate, muscle, spine and laboratory sets; see `fakes.card_fakes`."""

from pathlib import Path

import numpy as np
from fakes.card_fakes import (
    SIZE,
    Expect,
    Fake,
    blob,
    classes,
    coco,
    empty,
    save,
    save_array,
    save_csv,
    save_json,
    save_text,
    speckle,
    stack,
)
from numpy.random import Generator
from numpy.typing import NDArray

SQUARE = (20.0, 20.0, 60.0, 20.0, 60.0, 60.0, 20.0, 60.0)  # a polygon
UUIDS = ("0d0a3298-a9c6-43c3-a9e3-df3a9c0afa06", "1d0a3298-a9c6-43c3-a9e3-df3a9c0afa06")


def butterfly_grandhack(root: Path, rng: Generator) -> None:
    """One file name in every folder; a part in a folder of its own archive; patients of training and test."""
    for folder in ("training/1/bladder", "training/1/4ch", "test/26/ivc"):
        save(root / f"butterfly_dataset/{folder}/img001.png", speckle(rng))
    save(root / "butterfly_dataset_training2/17/plax/img001.png", speckle(rng))
    save_text(root / "README.md", "MIT Grand Hack 2018")


def gist514(root: Path, rng: Generator) -> None:
    """COCO files of three folds, each with all images, divided in another way."""
    kinds = {"12.jpg": "gist", "13.jpg": "lmym", "20.jpg": "gist"}
    for name in kinds:
        save(root / f"usd514_jpeg_roi/images/{name}", speckle(rng))
    for fold, held_out in enumerate(("20.jpg", "12.jpg", "13.jpg")):
        for split in ("train", "val"):
            names = [name for name in kinds if (name == held_out) == (split == "val")]
            shapes = [(k, kinds[name], SQUARE) for k, name in enumerate(names)]
            content = coco([(name, SIZE) for name in names], shapes)
            save_json(root / f"usd514_jpeg_roi/annotations/{split}_anno_crop_split_{fold}.json", content)


def lepset(root: Path, rng: Generator) -> None:
    """Equal names in both classes, and an image without a class."""
    for name in ("labeled/PC/1.png", "labeled/NPC/1.png", "unlabeled/9.png"):
        save(root / f"LEPset/{name}", speckle(rng), "RGB")


def radimagenet_us(root: Path, rng: Generator) -> None:
    """Folders with a blank and of no known name, an MR image, a row without a file and an image without a row."""
    top = root / "radiology_ai"
    for folder, number in (("liver", 1), ("thyroid nodule", 2), ("portal_vein", 3), ("liver", 4), ("adrenal", 5)):
        save(top / f"US/{folder}/usn{number:06d}.png", speckle(rng))
    save(top / "MR/knee/mrn000001.png", speckle(rng))
    listed = {
        "train": ["US/liver/usn000001.png", "MR/knee/mrn000001.png", "US/adrenal/usn000005.png"],
        "val": ["US/thyroid nodule/usn000002.png"],
        "test": ["US/portal_vein/usn000003.png", "US/liver/usn999999.png"],
    }
    for split, names in listed.items():
        rows = [(f"radiology_ai/{name}", name.split("/")[1]) for name in names]
        save_csv(root / f"RadiologyAI_{split}.csv", ("filename", "label"), *rows)


def fass(root: Path, rng: Generator) -> None:
    """A pickled dict as it was published, a plain array that a user made of one, an image without either."""
    for stem in ("P01_IMG1", "P02_IMG1", "scan7"):
        save(root / f"IMAGES/{stem}.png", speckle(rng), "RGB")
    published = np.array({"structures": {"liver": blob() // 255, "stomach": empty()}}, dtype=object)
    (root / "ARRAY_FORMAT").mkdir()
    np.save(root / "ARRAY_FORMAT/P01_IMG1.npy", published, allow_pickle=True)
    save_array(root / "ARRAY_FORMAT/P02_IMG1.npy", classes(1, 2, 4))


def fast_u_net(root: Path, rng: Generator) -> None:
    """Unpacked archives of both parts, one with a folder inside; masks of other names than their images."""
    save(root / "Dataset/AC/AC_image1/12.png", speckle(rng))
    save(root / "Dataset/AC/AC_image2/AC_image2/13.png", speckle(rng), "RGB")
    for name in ("12", "13"):
        save(root / f"Dataset/AC/AC_mask/{name}.png", blob(), "RGB")
    save(root / "Dataset/HC/HC_image1/010_HC.png", speckle(rng))
    save(root / "Dataset/HC/HC_image3/010_2HC.png", speckle(rng))
    save(root / "Dataset/HC/HC_mask/010_2HC_Annotation.png", blob())
    save_text(root / "Dataset/AC/AC_image1.rar", "Rar!")


def acouslic(root: Path, rng: Generator) -> None:
    """Recordings of 12 frames, one with the abdomen marked in two; masks in either place; empty circumferences."""
    top = root / "acouslic-ai-train-set"
    for uuid in UUIDS:
        save_array(top / f"images/stacked_fetal_ultrasound/{uuid}.mha", stack(rng, 12), spacing=(0.28, 0.28, 1.0))
    marked = np.zeros((12, SIZE[1], SIZE[0]), np.uint8)
    marked[3], marked[7] = blob(value=1), blob(value=2)
    save_array(top / f"masks/stacked_fetal_abdomen/{UUIDS[0]}.mha", marked)
    save_array(top / f"images/masks/stacked_fetal_abdomen/{UUIDS[1]}.mha", np.zeros_like(marked))
    header = ("uuid", "subject_id", *(f"sweep_{k}_ac_mm" for k in range(1, 7)))
    rows = [(UUIDS[0], "S1", 201.5, "", "", "", "", 203.5), (UUIDS[1], "S1", "", 199.5, "", "", "", "")]
    save_csv(top / "circumferences/fetal_abdominal_circumferences_per_sweep.csv", header, *rows)


def jnu_ifm(root: Path, rng: Generator) -> None:
    """Two videos of one day, one of another; masks of the values 7 and 8; a table per video."""
    frames = {"20190909T155747": ((12, 6), (13, 4)), "20190909T170000": ((1, 3),), "20191010T080000": ((2, 5),)}
    values = {3: (), 4: (7,), 5: (8,), 6: (7, 8)}
    for video, listed in frames.items():
        for number, label in listed:
            save(root / f"{video}/image/{video}_{number}.png", speckle(rng), "RGB")
            save(
                root / f"{video}/mask/{video}_{number}_mask.png", classes(*values[label]) if values[label] else empty()
            )
            save(root / f"{video}/mask_enhance/{video}_{number}_mask_enhance.png", blob())
        rows = [(video, number, label) for number, label in listed]
        name = "framelabel.csv" if video.startswith("20190909") else "frame_label.csv"
        save_csv(root / f"{video}/{name}", ("video_name", "frame_id", "frame_label"), *rows)


def _sector(rng: Generator) -> NDArray[np.uint8]:
    """Speckle that is black at the left and the right, (3, height, width)."""
    grey = speckle(rng)
    grey[:, :20] = grey[:, -20:] = 0
    return np.repeat(grey[None], 3, axis=0)


def fh_ps_aop(root: Path, rng: Generator) -> None:
    """Colours first; labels that reach beyond the sector; one image without a label file."""
    top = root / "Pubic Symphysis-Fetal Head Segmentation and Angle of Progression"
    for number in (1, 2, 3):
        save_array(top / f"image_mha/{number:05d}.mha", _sector(rng))
    for number in (1, 2):
        save_array(top / f"label_mha/{number:05d}.mha", np.where(classes(1, 2) == 0, 2, classes(1, 2)).astype(np.uint8))


def psfhs(root: Path, rng: Generator) -> None:
    """The same file names as in FH-PS-AOP."""
    for number in (1, 2):
        save_array(root / f"PSFHS/image_mha/{number:05d}.mha", np.repeat(speckle(rng)[None], 3, axis=0))
        save_array(root / f"PSFHS/label_mha/{number:05d}.mha", classes(1, 2))


def feft(root: Path, rng: Generator) -> None:
    """One folder per view, one of them written in another way; a frame of colour Doppler."""
    save(root / "Aorta/1.jpg", speckle(rng))
    save(root / "V sign/1.jpg", speckle(rng))
    save(root / "x_sign/1.jpg", speckle(rng))
    save(root / "Flows/1.jpg", speckle(rng, tint=True))


def ultrasound_fetus_kaggle(root: Path, rng: Generator) -> None:
    """Class folders in upper and lower case."""
    for folder in ("Benign", "malignant", "Normal"):
        save(root / f"Ultrasound Fetus Dataset/data/{folder}/1.png", speckle(rng), "RGB")


def mmotu_3d(root: Path, rng: Generator) -> None:
    """2-D images with masks in any colour, beside them copies in two colours; lists of names without an ending."""
    top = root / "OTU_3d"
    for number, colour in ((1, (64, 0, 0)), (2, (0, 0, 128)), (30, (0, 2, 0))):
        save(top / f"images/{number}.JPG", speckle(rng), "RGB")
        mask = (blob(value=1)[..., None] * np.array(colour)).astype(np.uint8)
        save(top / f"annotations/{number}.PNG", mask)
        save(top / f"annotations/{number}_binary.PNG", blob())
    save_text(top / "train.txt", "1", "30")
    save_text(top / "val.txt", "2")
    save_text(top / "val_cls.txt", "2.JPG 0")


def microseg(root: Path, rng: Generator) -> None:
    """Number 01 in training and test; slices upside down; an outline that reaches beyond the scan; other annotators."""
    top = root / "Micro_Ultrasound_Prostate_Segmentation_Dataset"
    for split in ("train", "test"):
        slices = stack(rng, 3)
        slices[:, :, :20] = 0  # no scan at the left
        marked = np.stack([empty(), blob(value=1), blob(value=1, radius=0.45)])
        turned, outlined = (np.ascontiguousarray(a[:, ::-1].transpose(2, 1, 0)) for a in (slices, marked))
        save_array(top / f"{split}/micro_ultrasound_scans/microUS_{split}_01.nii.gz", turned)
        save_array(top / f"{split}/expert_annotations/expert_annotation_{split}_01.nii.gz", outlined)
    others = (
        "train/non_expert_annotations/nonexpert_annotation_train_01",
        "test/clinician_annotations/clinician_annotation_test_01",
    )
    for name in others:
        save_array(top / f"{name}.nii.gz", outlined)


def regpro(root: Path, rng: Generator) -> None:
    """Sagittal slices along the first axis; six planes of structures, some of them empty; MR beside it."""
    for split, case in (("train", "case000000"), ("val", "case000065")):
        slices = stack(rng, 3, (48, 40))
        planes = np.zeros((6, *slices.shape), np.uint8)
        planes[0, 1:] = blob((48, 40), radius=0.4, value=1)
        planes[1, 1] = blob((48, 40), (0.25, 0.5), 0.1, 1)
        planes[5, 2] = blob((48, 40), (0.75, 0.5), 0.1, 1)
        flipped = slices[:, ::-1, ::-1].transpose(0, 2, 1)
        marked = planes[:, :, ::-1, ::-1].transpose(1, 3, 2, 0)
        save_array(root / f"{split}/us_images/{case}.nii.gz", np.ascontiguousarray(flipped))
        save_array(root / f"{split}/us_labels/{case}.nii.gz", np.ascontiguousarray(marked))
        save_array(root / f"{split}/mr_images/{case}.nii.gz", np.ascontiguousarray(flipped))


def fallmud(root: Path, rng: Generator) -> None:
    """Masks with loss, of other endings than their images, one turned by 90 degrees; one image without masks."""
    first, second = root / "FALLMUD/NeilCronin", root / "FALLMUD/RyanCunningham"
    save(first / "images/img_1.tif", speckle(rng))
    save(first / "aponeurosis_masks/img_1.jpg", blob(centre=(0.5, 0.2), radius=0.15))
    save(first / "fascicle_masks/img_1.tif", blob(centre=(0.5, 0.7), radius=0.15, value=120))
    save(second / "images/1.jpg", speckle(rng))
    upright = blob(centre=(0.3, 0.2), radius=0.15)
    save(second / "aponeurosis_masks/1.png", np.rot90(upright))  # counter-clockwise
    save(second / "fascicle_masks/1.png", blob(centre=(0.5, 0.7), radius=0.15))
    save(second / "images/2.jpg", speckle(rng))


def stmus_nda(root: Path, rng: Generator) -> None:
    """One file name in three muscles; masks of the values 1 and 255."""
    for muscle, value in (("BB", 1), ("GM", 255), ("TA", 255)):
        save(root / f"Polito-Radboud-DeepLearningUS/{muscle}/Images/a.png", speckle(rng))
        save(root / f"Polito-Radboud-DeepLearningUS/{muscle}/Masks/a.png", blob(value=value))


def luminous(root: Path, rng: Generator) -> None:
    for name in ("001", "002"):
        save(root / f"LUMINOUS_Database/B-mode/{name}.bmp", speckle(rng))
        save(root / f"LUMINOUS_Database/Masks/{name}.tif", blob())


def asus_spine(root: Path, rng: Generator) -> None:
    """Half-precision numbers from 0 to 1, an axis of length one, slices that are turned by 180 degrees."""
    for key in ("Q000", "Q001"):
        slices = (stack(rng, 2) / 255).astype(np.float16)
        marked = np.stack([empty(), blob(centre=(0.25, 0.25), radius=0.15, value=1)])
        save_array(root / f"DataArrays/{key}_ultrasound.npy", slices[:, ::-1, ::-1, None])
        save_array(root / f"DataArrays/{key}_segmentation.npy", marked[:, ::-1, ::-1, None])


def porcine_spinal_cord(root: Path, rng: Generator) -> None:
    """Boxes in Pascal VOC XML, one of them naming another file; an image without boxes."""
    for name in ("train/p1_001", "validation/p1_001", "test/p2_001"):
        save(root / f"{name}.png", speckle(rng))
    for name, inside, boxes in (("train/p1_001", "p1_001.png", 2), ("validation/p1_001", "copy of p1_001.png", 1)):
        objects = "".join(
            f"<object><name>hematoma</name><bndbox><xmin>{10 + 30 * k}</xmin><ymin>12</ymin><xmax>{30 + 30 * k}</xmax>"
            "<ymax>40</ymax></bndbox></object>"
            for k in range(boxes)
        )
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>1</depth></size>"
        save_text(root / f"{name}.xml", f"<annotation><filename>{inside}</filename>{size}{objects}</annotation>")


FAKES = {
    "butterfly_grandhack": Fake(
        "butterfly_grandhack",
        butterfly_grandhack,
        Expect(
            samples=4,
            ignored=1,
            labels={"bladder": 1, "4ch": 1, "ivc": 1, "plax": 1},
            patients=3,
            splits={"train": 3, "test": 1},
            organs={"bladder": 1, "heart": 2, "inferior_vena_cava": 1},
            views={"bladder": 1, "4ch": 1, "ivc": 1, "plax": 1},
        ),
    ),
    "gist514": Fake(
        "gist514",
        gist514,
        Expect(
            samples=3,
            ignored=2,
            masks=3,
            classes={"gist": 2, "leiomyoma": 1},
            labels={"gist": 2, "leiomyoma": 1},
            splits={"train": 2, "val": 1},
        ),
    ),
    "lepset": Fake(
        "lepset",
        lepset,
        Expect(samples=3, labels={"pancreatic_cancer": 1, "non_pancreatic_cancer": 1}),
    ),
    "radimagenet_us": Fake(
        "radimagenet_us",
        radimagenet_us,
        Expect(
            samples=4,
            quarantined={"unknown_label": 1},
            ignored=1,
            labels={"liver": 2, "thyroid_nodule": 1, "portal_vein": 1},
            splits={"train": 1, "val": 1, "test": 1},
            organs={"liver": 2, "thyroid": 1, "abdomen_other": 1},
        ),
    ),
    "fass": Fake(
        "fass",
        fass,
        Expect(
            samples=3,
            quarantined={"pickled": 1},
            masks=1,
            classes={"artery": 1, "liver": 1, "vein": 1},
            patients=2,
        ),
    ),
    "fast_u_net": Fake(
        "fast_u_net",
        fast_u_net,
        Expect(
            samples=4,
            ignored=1,
            masks=3,
            classes={"fetal_abdomen": 2, "fetal_head": 1},
            patients=1,
            organs={"fetal_abdomen": 2, "fetal_head": 2},
        ),
    ),
    "acouslic": Fake(
        "acouslic",
        acouslic,
        Expect(
            samples=6,  # frames 0 and 10 of each, and of the first 3 and 7
            masks=2,
            classes={"optimal_plane": 1, "suboptimal_plane": 1},
            targets={
                "abdominal_circumference_sweep_1_mm": [201.5],
                "abdominal_circumference_sweep_2_mm": [199.5],
                "abdominal_circumference_sweep_6_mm": [203.5],
            },
            patients=1,
            clips=2,
        ),
    ),
    "jnu_ifm": Fake(
        "jnu_ifm",
        jnu_ifm,
        Expect(
            samples=4,
            ignored=4,
            masks=4,
            classes={"pubic_symphysis": 2, "fetal_head": 2},
            labels={"none": 1, "only_sp": 1, "only_head": 1, "sp_head": 1},
            studies=2,
            clips=3,
        ),
    ),
    "fh_ps_aop": Fake(
        "fh_ps_aop", fh_ps_aop, Expect(samples=3, masks=2, classes={"pubic_symphysis": 2, "fetal_head": 2})
    ),
    "psfhs": Fake("psfhs", psfhs, Expect(samples=2, masks=2, classes={"pubic_symphysis": 2, "fetal_head": 2})),
    "feft": Fake(
        "feft",
        feft,
        Expect(
            samples=4,
            labels={"aorta": 1, "v_sign": 1, "x_sign": 1, "flows": 1},
            modes={"B-mode": 3, "colour_doppler": 1},
        ),
    ),
    "ultrasound_fetus_kaggle": Fake(
        "ultrasound_fetus_kaggle",
        ultrasound_fetus_kaggle,
        Expect(samples=3, labels={"benign": 1, "malignant": 1, "normal": 1}),
    ),
    "mmotu_3d": Fake(
        "mmotu_3d",
        mmotu_3d,
        Expect(samples=3, ignored=4, masks=3, classes={"lesion": 3}, splits={"train": 2, "val": 1}),
    ),
    "microseg": Fake(
        "microseg",
        microseg,
        Expect(
            samples=6,
            ignored=2,
            masks=6,
            classes={"prostate": 4},
            patients=2,
            clips=2,
            splits={"train": 3, "test": 3},
        ),
    ),
    "regpro": Fake(
        "regpro",
        regpro,
        Expect(
            samples=6,
            ignored=2,
            masks=6,
            classes={"prostate": 4, "landmark_1": 2, "landmark_5": 2},
            patients=2,
            clips=2,
            splits={"train": 3, "val": 3},
        ),
    ),
    "fallmud": Fake("fallmud", fallmud, Expect(samples=3, masks=2, classes={"fascicle": 2, "aponeurosis": 2})),
    "stmus_nda": Fake(
        "stmus_nda",
        stmus_nda,
        Expect(
            samples=3,
            masks=3,
            classes={"muscle": 3},
            labels={"biceps_brachii": 1, "gastrocnemius_medialis": 1, "tibialis_anterior": 1},
        ),
    ),
    "luminous": Fake("luminous", luminous, Expect(samples=2, masks=2, classes={"multifidus": 2})),
    "asus_spine": Fake("asus_spine", asus_spine, Expect(samples=4, masks=4, classes={"bone": 2}, clips=2)),
    "porcine_spinal_cord": Fake(
        "porcine_spinal_cord",
        porcine_spinal_cord,
        Expect(samples=3, marks={"hematoma": 3}, splits={"train": 1, "val": 1, "test": 1}),
    ),
}
