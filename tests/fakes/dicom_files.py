"""Synthetic DICOM ultrasound files in many encodings. Nothing in them comes from a patient.

write_dicom(tmp_path / "a.dcm", echo_rgb())
write_dicom(tmp_path / "b.dcm", [frame, frame], syntax="rle", PatientName="Somebody^Else")
write_dicom(tmp_path / "c.dcm", grey16, stored=12, change=lambda dataset: dataset.add_new(0x00091001, "LO", "x"))
"""

import io
import logging
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import config, dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_fragments
from pydicom.uid import UID

from ingest.readers import dicom

SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big_endian": "1.2.840.10008.1.2.2",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg": "1.2.840.10008.1.2.4.50",
    "jpeg_extended": "1.2.840.10008.1.2.4.51",
    "jpeg_lossless": "1.2.840.10008.1.2.4.70",
    "jpeg_ls": "1.2.840.10008.1.2.4.80",
    "jpeg_2000": "1.2.840.10008.1.2.4.90",
    "htj2k": "1.2.840.10008.1.2.4.201",
    "mpeg2": "1.2.840.10008.1.2.4.100",
    "h264": "1.2.840.10008.1.2.4.102",
}
NATIVE = ("implicit", "explicit", "deflated", "big_endian")
ULTRASOUND, ULTRASOUND_CINE = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"
ROOT = "1.2.826.0.1.3680043.10.1"  # UIDs of the fakes begin with it


@contextmanager
def quiet_reader() -> Iterator[None]:
    """`quiet_pydicom` for a test: what it changes in this process is put back."""
    names = ["convert_wrong_length_to_UN", "replace_un_with_known_vr"]
    names += ["INVALID_KEYWORD_BEHAVIOR", "INVALID_KEY_BEHAVIOR"]
    before = {name: getattr(config, name) for name in names}
    modes = config.settings.reading_validation_mode, config.settings.writing_validation_mode
    loggers = [(log, log.level, log.propagate) for log in map(logging.getLogger, dicom._LOGGERS)]
    try:
        with warnings.catch_warnings():
            dicom.quiet_pydicom()
            yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
        config.settings.reading_validation_mode, config.settings.writing_validation_mode = modes
        for log, level, propagate in loggers:
            log.setLevel(level)
            log.propagate = propagate


def echo_rgb(height: int = 40, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """A little colour picture, uint8 (H, W, 3): smooth, with all colours, unlike its mirror image."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(0, 30, (height, width))
    red, green, blue = 225 * x // width + noise, 225 * y // height + noise, 225 - 200 * x * y // (width * height)
    return np.stack([red, green, blue], axis=2).clip(0, 255).astype(np.uint8)


def echo_grey(height: int = 40, width: int = 64, seed: int = 0, bits: int = 8) -> NDArray[Any]:
    """The same in grey: uint8, or uint16 that fill `bits` bits."""
    grey = echo_rgb(height, width, seed)[..., 0].astype(np.uint32)
    values = grey if bits == 8 else (grey * ((1 << bits) - 1) // 255)
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


def write_dicom(
    path: Path,
    frames: NDArray[Any] | Sequence[NDArray[Any]],
    *,
    syntax: str = "explicit",
    photometric: str | None = None,
    planar: int = 0,
    stored: int | None = None,
    high: int | None = None,
    signed: bool = False,
    words: bool | None = None,
    pixel_data: bytes | None = None,
    fragments: Sequence[bytes] | None = None,
    preamble: bool = True,
    meta: bool = True,
    tail: bytes = b"",
    change: Callable[[Dataset], None] | None = None,
    **tags: Any,
) -> Path:
    """Write a DICOM file and return its path.

    Args:
        frames: stored values: one frame (H, W) or (H, W, 3), or a list of them; uint8, uint16 or int16. Of a colour
            picture RGB, or what `photometric` says (for YBR_FULL_422 with all chroma: every second one is taken).
        syntax: a key of SYNTAXES, or a UID. Lossless ones keep `frames` exactly.
        photometric: default MONOCHROME2 or RGB, by the shape.
        planar, stored, high, signed: PlanarConfiguration, BitsStored, HighBit, PixelRepresentation.
        words: 8-bit pixels as OW (bytes swapped in big endian) or as OB.
        pixel_data: native bytes to write in place of those of `frames`.
        fragments: encapsulated fragments to write in place of those of `frames`.
        preamble, meta: False leaves them out.
        tail: bytes after the data set.
        change: called with the data set right before it is written.
        tags: values by keyword; None leaves an element out.
    """
    pictures = [frames] if isinstance(frames, np.ndarray) and _is_one(frames) else list(frames)
    uid = SYNTAXES.get(syntax, syntax)
    dataset = _described(pictures, photometric, planar, stored, high, signed)
    if fragments is not None:
        _add_fragments(dataset, fragments)
    elif pixel_data is not None or syntax in NATIVE or syntax not in SYNTAXES:
        _native(dataset, pictures, syntax, words, pixel_data)
    else:
        _compressed(dataset, pictures, syntax)
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    if change:
        change(dataset)
    path.write_bytes(_file(dataset, uid, preamble, meta) + tail)
    return path


def _is_one(frames: NDArray[Any]) -> bool:
    return frames.ndim == 2 or (frames.ndim == 3 and frames.shape[2] == 3)


def _described(
    pictures: list[NDArray[Any]],
    photometric: str | None,
    planar: int,
    stored: int | None,
    high: int | None,
    signed: bool,
) -> Dataset:
    first, dataset = pictures[0], Dataset()
    dataset.SOPClassUID = ULTRASOUND_CINE if len(pictures) > 1 else ULTRASOUND
    dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (f"{ROOT}.{n}" for n in (1, 2, 3))
    dataset.Modality = "US"
    dataset.Manufacturer, dataset.ManufacturerModelName = "Fake", "Phantom 1"
    dataset.PatientName, dataset.PatientID = "Phantom^Anna", "P-0001"
    dataset.StudyDate = "20200102"
    dataset.SamplesPerPixel = 3 if first.ndim == 3 else 1
    dataset.PhotometricInterpretation = photometric or ("RGB" if first.ndim == 3 else "MONOCHROME2")
    if first.ndim == 3:
        dataset.PlanarConfiguration = planar
    if len(pictures) > 1:
        dataset.NumberOfFrames = len(pictures)
    dataset.Rows, dataset.Columns = first.shape[:2]
    dataset.BitsAllocated = 8 * first.dtype.itemsize
    dataset.BitsStored = stored or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1 if high is None else high
    dataset.PixelRepresentation = int(signed)
    return dataset


def add_palette(dataset: Dataset, table: NDArray[Any], *, first: int = 0, bits: int = 16) -> None:
    """Give a PALETTE COLOR data set the colours `table`, uint8 or uint16 (n, 3), as entries of 8 or 16 bits."""
    signed = dataset.PixelRepresentation
    for number, colour in enumerate(("Red", "Green", "Blue")):
        column = np.ascontiguousarray(table[:, number])
        content = column.astype("<u2" if bits == 16 else "u1").tobytes()
        dataset.add_new(0x00281101 + number, "SS" if signed else "US", [len(table) & 0xFFFF, first, bits])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", content + b"\0" * (len(content) % 2))


def native_bytes(
    pictures: Sequence[NDArray[Any]], photometric: str = "", planar: int = 0, big: bool = False, words: bool = False
) -> bytes:
    """The value of native PixelData, padded to an even length."""
    out = b""
    for picture in pictures:
        values = picture
        if photometric in ("YBR_FULL_422", "YBR_PARTIAL_422"):
            pairs = picture.reshape(picture.shape[0], -1, 2, 3)
            values = np.concatenate([pairs[..., 0], pairs[:, :, 0, 1:]], axis=2)
        elif planar:
            values = np.moveaxis(picture, 2, 0)
        out += values.astype(values.dtype.newbyteorder(">" if big else "<")).tobytes()
    out += b"\0" * (len(out) % 2)
    if big and words and pictures[0].dtype.itemsize == 1:
        out = np.frombuffer(out, "u2").byteswap().tobytes()
    return out


def _native(
    dataset: Dataset, pictures: list[NDArray[Any]], syntax: str, words: bool | None, content: bytes | None
) -> None:
    wide, big = pictures[0].dtype.itemsize > 1, syntax == "big_endian"
    words = wide or syntax == "implicit" if words is None else words
    planar = dataset.get("PlanarConfiguration", 0)
    if content is None:
        content = native_bytes(pictures, dataset.PhotometricInterpretation, planar, big, words)
    dataset.add_new(0x7FE00010, "OW" if words else "OB", content)


def jpeg_frame(picture: NDArray[Any], **options: Any) -> bytes:
    """A baseline JPEG code stream as Pillow writes it (colour: YCbCr with a JFIF marker)."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", **{"quality": 95, "subsampling": 0, **options})
    return file.getvalue()


def encapsulated(fragments: Sequence[bytes], table: bytes = b"") -> bytes:
    """The value of encapsulated PixelData without its delimiter: the offset table, then the fragments as they are."""
    pieces = [table, *(fragment + b"\0" * (len(fragment) % 2) for fragment in fragments)]
    return b"".join(b"\xfe\xff\x00\xe0" + len(piece).to_bytes(4, "little") + piece for piece in pieces)


def _add_fragments(dataset: Dataset, fragments: Sequence[bytes]) -> None:
    dataset.add_new(0x7FE00010, "OB", encapsulated(fragments))
    dataset["PixelData"].is_undefined_length = True


def _compressed(dataset: Dataset, pictures: list[NDArray[Any]], syntax: str) -> None:
    photometric = dataset.PhotometricInterpretation
    if syntax in ("jpeg", "jpeg_extended"):
        _add_fragments(dataset, [jpeg_frame(picture) for picture in pictures])
        dataset.PhotometricInterpretation = "YBR_FULL" if photometric == "RGB" else photometric
    elif syntax == "jpeg_lossless":
        _add_fragments(dataset, [_lossless_jpeg(dataset, picture) for picture in pictures])
    else:
        _add_fragments(dataset, [_by_pydicom(dataset, picture, syntax) for picture in pictures])
        if syntax == "jpeg_2000" and photometric == "RGB":
            dataset.PhotometricInterpretation = "YBR_RCT"


def _by_pydicom(dataset: Dataset, picture: NDArray[Any], syntax: str) -> bytes:
    """One frame's code stream by an encoder of pydicom's, which is told no more of bits and colours than it must."""
    stored = dataset.BitsAllocated if syntax == "rle" else dataset.BitsStored
    one = _described([picture], None, 0, stored, None, bool(dataset.PixelRepresentation))
    if syntax == "jpeg_2000" and dataset.PhotometricInterpretation == "RGB":
        one.PhotometricInterpretation = "YBR_RCT"
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = UID(SYNTAXES["explicit"])
    one.compress(SYNTAXES[syntax], np.ascontiguousarray(picture), generate_instance_uid=False)
    return fragments_of(one)[0]


def fragments_of(dataset: Dataset) -> list[bytes]:
    """The fragments of encapsulated pixel data, without the offset table."""
    return list(generate_fragments(dataset.PixelData))[1:]


def _lossless_jpeg(dataset: Dataset, picture: NDArray[Any]) -> bytes:
    """A lossless JPEG code stream (process 14, selection value 1) by gdcm, which works from file to file."""
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        native, packed = Path(folder) / "native.dcm", Path(folder) / "packed.dcm"
        write_dicom(native, picture, stored=dataset.BitsStored)  # the colours' names would make gdcm convert or abort
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(native))
        done = reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        done = done and change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(packed))
        if not (done and writer.Write()):
            raise RuntimeError("gdcm could not write a lossless JPEG")
        content = b"".join(fragments_of(dcmread(packed)))
    return content if dataset.PhotometricInterpretation == "RGB" else renamed_components(content, b"\1\2\3")


def renamed_components(content: bytes, names: bytes) -> bytes:
    """A JPEG code stream of one scan whose colour components bear other names: RGB says what they are."""
    out = bytearray(content)
    frame = next(at for at in range(len(out)) if out[at] == 0xFF and out[at + 1] in (0xC0, 0xC3))
    scan = out.index(b"\xff\xda", frame)
    if out[frame + 9] == 3:
        for number in range(3):
            out[frame + 10 + 3 * number] = out[scan + 5 + 2 * number] = names[number]
    return bytes(out)


def _file(dataset: Dataset, uid: str, preamble: bool, meta: bool) -> bytes:
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset, write_file_meta_info

    implicit, little = uid == SYNTAXES["implicit"], uid != SYNTAXES["big_endian"]
    body = DicomBytesIO()
    body.is_implicit_VR, body.is_little_endian = implicit, little
    write_dataset(body, dataset)
    content = body.getvalue()
    if uid == SYNTAXES["deflated"]:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        content = packer.compress(content) + packer.flush()
        content += b"\0" * (len(content) % 2)
    if not meta:
        return content
    head = FileMetaDataset()
    head.FileMetaInformationVersion = b"\0\1"
    head.FileMetaInformationGroupLength = 0
    head.MediaStorageSOPClassUID = dataset.get("SOPClassUID", ULTRASOUND)
    head.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", f"{ROOT}.1")
    head.TransferSyntaxUID = UID(uid)
    head.ImplementationClassUID = f"{ROOT}.9"
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = False, True
    write_file_meta_info(file, head, enforce_standard=False)
    return (b"\0" * 128 + b"DICM" if preamble else b"") + file.getvalue() + content
