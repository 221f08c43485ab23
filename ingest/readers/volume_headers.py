"""Headers of NIfTI, MetaImage, NRRD and NPY -> where the numbers lie and what they are (`Stored`).

Millimetres: NIfTI's unit is in its header (none given counts as mm, as every viewer has it); MetaImage's spacing is in
mm by its definition; NRRD's only when the header names a space (all of them are in mm) or says mm; NPY has none. A
spacing of exactly 1 is what programs write that know none, and counts as unknown (ours), as does one that is not
between 0.001 and 100 mm.
"""

import re
import struct
import tokenize
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ingest.readers.volume_stored import Stored, Unpacked
from usdata.errors import DataError

_HEADER = 1 << 16  # bytes; longer headers of text are refused
# NIfTI's number of a type -> NumPy's; RGB24 and RGBA32 are three and four numbers.
_NIFTI = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_NIFTI_COLOURS = {128: 3, 2304: 4}
_NIFTI_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unit of length -> millimetres
_META = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "FLOAT": "f4"}
_META |= {"DOUBLE": "f8", "LONG_LONG": "i8", "ULONG_LONG": "u8", "LONG": "i4", "ULONG": "u4"}
_NRRD = {"signed char": "i1", "int8": "i1", "int8_t": "i1", "uchar": "u1", "unsigned char": "u1", "uint8": "u1"}
_NRRD |= {"uint8_t": "u1", "short": "i2", "short int": "i2", "signed short": "i2", "signed short int": "i2"}
_NRRD |= {"int16": "i2", "int16_t": "i2", "ushort": "u2", "unsigned short": "u2", "unsigned short int": "u2"}
_NRRD |= {"uint16": "u2", "uint16_t": "u2", "int": "i4", "signed int": "i4", "int32": "i4", "int32_t": "i4"}
_NRRD |= {"uint": "u4", "unsigned int": "u4", "uint32": "u4", "uint32_t": "u4", "longlong": "i8", "int64": "i8"}
_NRRD |= {"long long": "i8", "int64_t": "i8", "uint64": "u8", "uint64_t": "u8", "unsigned long long": "u8"}
_NRRD |= {"float": "f4", "double": "f8"}
_NRRD_COLOURS = ("RGB-color", "RGBA-color", "vector", "3-color", "4-color", "list")
_NPY_DAMAGE: tuple[type[Exception], ...] = (ValueError, TypeError, SyntaxError, EOFError, tokenize.TokenError)
_NPY_DAMAGE += (RecursionError, MemoryError, OverflowError, LookupError, AttributeError)
_VECTOR = re.compile(r"\(([^()]*)\)")


def nifti(path: Path) -> Stored:
    """NIfTI-1 or -2 in one file, plain or gzip: axes in index order, the first varying fastest; no orientation applied.

    Raises:
        DataError: no or a damaged header, two files (.hdr and .img), or a type that no grey level has.
    """
    head, packed = nifti_head(path), _is_gzip(path)
    for order in "<>":
        if len(head) >= 348 and struct.unpack_from(f"{order}i", head)[0] == 348:
            return _nifti1(path, head, order, packed)
        if len(head) >= 540 and struct.unpack_from(f"{order}i", head)[0] == 540:
            return _nifti2(path, head, order, packed)
    what = "truncated" if len(head) < 348 else "unreadable"
    raise DataError(what, "No NIfTI header at the beginning of the file.", step="read")


def nifti_head(path: Path) -> bytes:
    """The first 540 bytes, unpacked; fewer of a shorter file."""
    return _unpacked_head(path, 540) if _is_gzip(path) else _head(path, 540)


def _is_gzip(path: Path) -> bool:
    return _head(path, 2) == b"\x1f\x8b"


def is_nifti(head: bytes) -> bool:
    """Whether unpacked bytes begin a NIfTI file."""
    return head[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c", b"\x1c\2\0\0", b"\0\0\2\x1c")


def _nifti1(path: Path, head: bytes, order: str, packed: bool) -> Stored:
    if head[344:348] != b"n+1\0":
        raise DataError("unsupported", "NIfTI in two files, or Analyze; save it as one .nii file.", step="read")
    sizes = struct.unpack_from(f"{order}8h", head, 40)
    steps = struct.unpack_from(f"{order}8f", head, 76)
    (kind,) = struct.unpack_from(f"{order}h", head, 70)
    start, slope, intercept = struct.unpack_from(f"{order}3f", head, 108)
    return _nifti_stored(path, order, packed, sizes, steps, kind, (start, slope, intercept), head[123])


def _nifti2(path: Path, head: bytes, order: str, packed: bool) -> Stored:
    if head[4:8] != b"n+2\0":
        raise DataError("unsupported", "NIfTI in two files; save it as one .nii file.", step="read")
    sizes = struct.unpack_from(f"{order}8q", head, 16)
    steps = struct.unpack_from(f"{order}8d", head, 104)
    (kind,) = struct.unpack_from(f"{order}h", head, 12)
    start, slope, intercept = struct.unpack_from(f"{order}qdd", head, 168)
    (units,) = struct.unpack_from(f"{order}i", head, 500)
    return _nifti_stored(path, order, packed, sizes, steps, kind, (start, slope, intercept), units & 0xFF)


def _nifti_stored(
    path: Path,
    order: str,
    packed: bool,
    sizes: tuple[int, ...],
    steps: tuple[float, ...],
    kind: int,
    place: tuple[float, float, float],
    units: int,
) -> Stored:
    count = sizes[0]
    if not 1 <= count <= 7:
        raise DataError("unreadable", f"The NIfTI header says that the array has {count} axes.", step="read")
    colours = _NIFTI_COLOURS.get(kind, 1)
    if kind not in _NIFTI and colours == 1:
        raise DataError("unsupported", f"NIfTI's data type {kind} is no grey level.", step="read")
    start, slope, intercept = place
    if not (np.isfinite(start) and 0 <= start < 1 << 30):
        raise DataError("unreadable", f"The NIfTI header says that the numbers begin at byte {start}.", step="read")
    if not np.isfinite(slope) or slope == 0:  # by the standard: not scaled
        slope, intercept = 1.0, 0.0
    if not np.isfinite(intercept):
        raise DataError("unreadable", "The NIfTI header's intercept is no number.", step="read")
    length = _NIFTI_MM.get(units & 7)
    spacing = [millimetres(abs(step) * length) if length and axis < 3 else None for axis, step in enumerate(steps[1:])]
    return Stored(
        path=path,
        offset=0 if packed else int(start),
        packing="deflate" if packed else "raw",
        skip=int(start) if packed else 0,
        sizes=sizes[1 : count + 1],
        dtype=np.dtype(_NIFTI.get(kind, "u1")).newbyteorder(order),  # type: ignore[arg-type]
        first_fastest=True,
        colours=colours,
        slope=float(slope),
        intercept=float(intercept),
        spacing=tuple(spacing[:count]) + (None,) * (colours > 1),
    )


def meta_image(path: Path) -> Stored:
    """MetaImage, with its numbers in the same file (.mha) or in one beside it (.mhd); axes with the slowest first.

    Raises:
        DataError: no or a damaged header, a type that no grey level has, numbers in several files, or in a file that
            does not lie in the header's own folder.
    """
    fields, after = _meta_fields(path)
    sizes = _numbers(fields.get("dimsize", ""), int, "DimSize")
    if _word_number(fields.get("ndims", str(len(sizes))), "NDims") != len(sizes):
        raise DataError("unreadable", "NDims and DimSize of the MetaImage header differ.", step="read")
    kind = fields.get("elementtype", "").removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in _META:
        raise DataError("unsupported", f"MetaImage's element type {kind[:40]!r} is no grey level.", step="read")
    if _true(fields.get("binarydata", "True")) is False:
        raise DataError("unsupported", "MetaImage with its numbers as text; save it as binary.", step="read")
    big = _true(fields.get("elementbyteordermsb", fields.get("binarydatabyteordermsb", "False")))
    file, offset = (path, after) if fields["elementdatafile"].upper() == "LOCAL" else (_beside(path, fields), 0)
    colours = _word_number(fields.get("elementnumberofchannels", "1"), "ElementNumberOfChannels")
    packed = _true(fields.get("compresseddata", "False"))
    given = _numbers(fields.get("elementspacing", fields.get("elementsize", "")), float, "ElementSpacing")
    spacing = [millimetres(step) for step in given] if len(given) == len(sizes) else [None] * len(sizes)
    dtype = np.dtype(_META[kind]).newbyteorder(">" if big else "<")
    header = _word_number(fields.get("headersize", "0"), "HeaderSize")
    if header == -1 and not packed:  # the numbers end with the file
        colour_bytes = max(colours, 1) * dtype.itemsize
        offset = max(file.stat().st_size - int(np.prod(sizes, dtype=object)) * colour_bytes, 0)
    elif header > 0 and file != path:
        offset = header
    return Stored(
        path=file,
        offset=offset,
        packing="deflate" if packed else "raw",
        skip=0,
        sizes=tuple(sizes[::-1]),
        dtype=dtype,
        first_fastest=False,
        colours=colours,
        spacing=(*spacing[::-1], *([None] * (colours > 1))),
    )


def is_meta_image(head: bytes) -> bool:
    """Whether bytes begin a MetaImage header: text, with one of its keys first."""
    return re.match(rb"\s*(ObjectType|ObjectSubType|NDims|Comment|TransformType|Name|ID)\s*=", head) is not None


def _meta_fields(path: Path) -> tuple[dict[str, str], int]:
    """The header's keys in lower case, and where it ends."""
    head = _head(path, _HEADER)
    fields: dict[str, str] = {}
    position = 0
    while (end := head.find(b"\n", position)) >= 0:
        key, equals, value = head[position:end].decode("latin-1").partition("=")
        position = end + 1
        if not equals:
            break
        fields[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":
            if not value.strip():
                break
            return fields, position
    raise DataError("unreadable", "The MetaImage header does not end with ElementDataFile.", step="read")


def _beside(path: Path, fields: dict[str, str]) -> Path:
    return beside(path, fields["elementdatafile"])


def beside(path: Path, name: str) -> Path:
    """The file `name` in the folder of the header `path`.

    Raises:
        DataError: several files, one elsewhere (data_outside), or none (data_missing).
    """
    if name.upper().startswith("LIST") or "%" in name:
        raise DataError("unsupported", "Numbers in several files; save the array as one file.", step="read")
    if not name or "/" in name or "\\" in name or "\0" in name or name in (".", "..") or ":" in name:
        text = f"The header points to {name[:80]!r}, which is not a file of its own folder."
        raise DataError("data_outside", text, step="read")
    file = path.parent / name
    if file.is_symlink() or not file.is_file():
        raise DataError("data_missing", f"The file {name[:80]!r} that holds the numbers is not there.", step="read")
    return file


def nrrd(path: Path) -> Stored:
    """NRRD, with its numbers attached or in one file beside it (.nhdr); axes with the slowest first, colours last.

    Raises:
        DataError: as `meta_image`.
    """
    fields, after = _nrrd_fields(path)
    sizes = _numbers(fields.get("sizes", ""), int, "sizes")
    if _word_number(fields.get("dimension", ""), "dimension") != len(sizes):
        raise DataError("unreadable", "dimension and sizes of the NRRD header differ.", step="read")
    kind = _NRRD.get(fields.get("type", ""))
    if kind is None:
        raise DataError("unsupported", f"NRRD's type {fields.get('type', '')[:40]!r} is no grey level.", step="read")
    packings: dict[str, Any] = {"raw": "raw", "gzip": "deflate", "gz": "deflate", "bzip2": "bzip2", "bz2": "bzip2"}
    packing = packings.get(fields.get("encoding", ""))
    if packing is None:
        text = f"NRRD's encoding {fields.get('encoding', '')[:40]!r}; save it as raw or gzip."
        raise DataError("unsupported", text, step="read")
    named = fields.get("data file", fields.get("datafile"))
    file, offset = (path, after) if named is None else (beside(path, named), 0)
    if any(fields.get(key, "0") not in ("0", "") for key in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise DataError("unsupported", "NRRD with `line skip` or `byte skip`; save it without.", step="read")
    spacing = _nrrd_spacing(fields, len(sizes))
    colours = 1
    if fields.get("kinds", "").split()[:1] and fields["kinds"].split()[0] in _NRRD_COLOURS:
        colours, sizes, spacing = sizes[0], sizes[1:], spacing[1:]
    dtype = np.dtype(kind).newbyteorder(">" if fields.get("endian") == "big" else "<")
    return Stored(
        path=file,
        offset=offset,
        packing=packing,
        skip=0,
        sizes=tuple(sizes[::-1]),
        dtype=dtype,
        first_fastest=False,
        colours=colours,
        spacing=(*spacing[::-1], *([None] * (colours > 1))),
    )


def _nrrd_fields(path: Path) -> tuple[dict[str, str], int]:
    """The header's fields with names in lower case, and where it ends: after an empty line, or with the file."""
    head = _head(path, _HEADER)
    fields: dict[str, str] = {}
    position = head.find(b"\n") + 1
    while position and position < len(head):
        end = head.find(b"\n", position)
        if end < 0:
            if len(head) == _HEADER:
                break
            end = len(head)  # a header of its own may end without a line's end
        line = head[position:end].decode("latin-1").rstrip("\r")
        position = end + 1
        if not line:
            return fields, position
        name, colon, value = line.partition(": ")
        if colon and not line.startswith("#"):
            fields[name.strip().lower()] = value.strip()
    if "data file" in fields or "datafile" in fields:
        return fields, position
    raise DataError("unreadable", "The NRRD header does not end.", step="read")


def _nrrd_spacing(fields: dict[str, str], count: int) -> list[float | None]:
    """Millimetres along each axis, the fastest first."""
    unknown: list[float | None] = [None] * count
    if "space directions" in fields and "space" in fields:
        vectors = re.findall(r"\([^()]*\)|none", fields["space directions"])
        lengths = [_length(vector) for vector in vectors]
        return lengths if len(lengths) == count else unknown
    units = re.findall(r'"([^"]*)"', fields.get("units", ""))
    if "spacings" in fields and len(units) == count:
        steps = _numbers(fields["spacings"], float, "spacings")
        if len(steps) == count:
            return [millimetres(s) if unit.strip() == "mm" else None for s, unit in zip(steps, units, strict=True)]
    return unknown


def _length(vector: str) -> float | None:
    match = _VECTOR.fullmatch(vector)
    if match is None:
        return None
    parts = _numbers(match[1].replace(",", " "), float, "space directions")
    return millimetres(float(np.sqrt(sum(part * part for part in parts))))


def npy(path: Path) -> Stored:
    """NPY of plain numbers; axes as NumPy shows them.

    Raises:
        DataError: pickled objects (reason pickled), or a damaged header.
    """
    with path.open("rb") as file:
        shape, first_fastest, dtype = npy_header(file)
        offset = file.tell()
    return npy_stored(path, offset, shape, first_fastest, dtype)


def npy_stored(path: Path, offset: int, shape: tuple[int, ...], first_fastest: bool, dtype: np.dtype[Any]) -> Stored:
    """What an NPY header says, for numbers that begin at `offset`."""
    return Stored(
        path=path,
        offset=offset,
        packing="raw",
        skip=0,
        sizes=shape,
        dtype=dtype,
        first_fastest=first_fastest,
        spacing=(None,) * len(shape),
    )


def npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the first axis varies fastest, and type; `file` then stands at the numbers.

    Raises:
        DataError: see `npy`.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"version {version}")
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that Python 2 wrote
            shape, first_fastest, dtype = reader(file)
    except _NPY_DAMAGE as error:
        text = f"The NPY header is damaged ({' '.join(str(error).split())[:200]})."
        raise DataError("unreadable", text, step="read") from error
    if dtype.hasobject:
        raise pickled()
    if dtype.kind not in "buif":
        raise DataError("unsupported", f"Numbers of the type {dtype} are no grey levels.", step="read")
    return shape, first_fastest, dtype


def pickled() -> DataError:
    """The refusal of pickled objects: to load them would be to run whatever program lies in the file."""
    return DataError(
        "pickled",
        "The file holds pickled Python objects, which can run programs when they are loaded. If you trust its source, "
        "convert it on a machine of its own: numpy.save of a plain array of numbers, or PNG.",
        step="read",
    )


def millimetres(value: float) -> float | None:
    """A spacing that can be one, to six digits; see the module's text."""
    if not np.isfinite(value) or value == 1.0 or not 0.001 <= value <= 100:
        return None
    return float(f"{value:.6g}")


def _head(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _unpacked_head(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return Unpacked(file, "deflate").up_to(size)


def _true(text: str) -> bool:
    return text.strip().lower() in ("true", "1", "yes")


def _numbers(text: str, kind: Any, name: str) -> list[Any]:
    try:
        return [kind(word) for word in text.split()]
    except ValueError as error:
        raise DataError("unreadable", f"{name} of the header is {text[:80]!r}.", step="read") from error


def _word_number(text: str, name: str) -> int:
    found = _numbers(text, int, name)
    if len(found) != 1:
        raise DataError("unreadable", f"{name} of the header is {text[:80]!r}.", step="read")
    return int(found[0])
