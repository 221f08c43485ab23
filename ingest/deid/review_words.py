"""What each reason means and what to do about it, for the person who looks at the review page."""

from typing import NamedTuple

from ingest.deid.reasons import Reason


class Words(NamedTuple):
    """One line each: what was found, and what a person can do."""

    found: str
    do: str


_DECODER = "Install the extra `dicom` (pip install 'usdata[dicom]'), then ingest again."
_FILE = "Export the file again from the archive or the scanner."
_REPORT = "A fault of the program: report the item's key and reason to whoever maintains it, never the file."

WORDS: dict[Reason, Words] = {
    Reason.MISSING: Words("The file went away while it was to be read.", "Ingest again."),
    Reason.CHANGED: Words(
        "The file was written anew while it was to be read.", "Ingest again when nobody writes there."
    ),
    Reason.EMPTY_FILE: Words("The file has no bytes.", _FILE),
    Reason.TRUNCATED: Words("The file ends in the middle.", _FILE),
    Reason.UNREADABLE: Words("The file can't be opened or parsed whole.", _FILE),
    Reason.TOO_LARGE: Words("The picture or clip is larger than is read safely.", "Export it smaller or shorter."),
    Reason.UNSUPPORTED: Words("Neither DICOM nor a picture or film that is read.", "Nothing, if it is no ultrasound."),
    Reason.TRAILING_BYTES: Words("There is something behind the end of the picture.", _FILE),
    Reason.LINK_OUTSIDE: Words("A link to a file outside of the folder.", "Put the file itself there."),
    Reason.LINK_TO_FOLDER: Words("A link to a folder: it is not followed.", "Put the folder itself there."),
    Reason.BROKEN_LINK: Words("A link to nothing.", "Remove it, or restore what it points to."),
    Reason.NOT_A_FILE: Words("A socket, pipe or device.", "Nothing."),
    Reason.UNREADABLE_FOLDER: Words("You may not look into this folder.", "Give yourself the right, or move it away."),
    Reason.NOT_ON_CARD: Words("Layout, labels or tables of the card do not fit the file.", "Complete the card."),
    Reason.NOT_ULTRASOUND: Words("DICOM of another modality.", "Nothing: only ultrasound is taken."),
    Reason.NOT_AN_IMAGE: Words("A report, a PDF, raw data: no picture.", "Nothing: such objects are never taken."),
    Reason.DICOMDIR: Words("The directory of a disc: a list of patients.", "Nothing: its files are read themselves."),
    Reason.SCREEN_FORM: Words("A secondary capture: a photographed screen or form.", "Nothing: never taken."),
    Reason.NO_PIXELS: Words("The object has no picture in it.", "Nothing, or export it again with pixels."),
    Reason.DEEP_NESTING: Words("Its header is nested deeper than any scanner's.", _FILE),
    Reason.PLUGIN_MISSING_JPEG_LOSSLESS: Words("Compressed by JPEG; the package python-gdcm is missing.", _DECODER),
    Reason.PLUGIN_MISSING_JPEG_LS: Words("Compressed by JPEG-LS; the package pyjpegls is missing.", _DECODER),
    Reason.PLUGIN_MISSING_JPEG_2000: Words("Compressed by JPEG 2000; pylibjpeg-openjpeg is missing.", _DECODER),
    Reason.PLUGIN_MISSING_RLE: Words("Compressed by RLE; the package pylibjpeg-rle is missing.", _DECODER),
    Reason.TRANSFER_SYNTAX: Words("Compressed in a way that no known package reads.", "Export it uncompressed."),
    Reason.PHOTOMETRIC: Words("Its colours are coded in a way that is not understood.", "Export it uncompressed."),
    Reason.PIXEL_LENGTH: Words("The header promises more or fewer pixels than there are.", _FILE),
    Reason.FRAME_MISSING: Words("A frame of the clip is missing or broken.", _FILE),
    Reason.NO_IDENTITY: Words("Neither patient nor study is known: nothing to group by.", "Give it a patient's ID."),
    Reason.NO_SCAN_AREA: Words(
        "It could not be shown where the scan ends and the screen begins.",
        "If the pictures of this device all have the scan in one place, a template can say where; then ingest again.",
    ),
    Reason.AREA_DIFFERS: Words(
        "The sector moves or changes its size within the clip.",
        "Nothing, or export the parts before and after the change as clips of their own.",
    ),
    Reason.TEXT_IN_SCAN_AREA: Words(
        "Something that looks like writing, a calliper or a mark lies inside the scan area.",
        "If it is writing, leave the file out, or export it without annotations. If it is tissue, the file is lost: "
        "the rule is not relaxed for a single file.",
    ),
    Reason.NOT_ZERO_OUTSIDE: Words("After cleaning, something was left outside the scan area.", _REPORT),
    Reason.SELF_CHECK: Words(
        "An identifier of the file was found in what would have been stored.",
        "Mostly a folder or a name that equals a catalog word (an organ, a make). Rename the folder, ingest again; "
        "else report the item's key, never the file.",
    ),
    Reason.DECODER_DIED: Words("The program that decodes it crashed on this file.", _FILE),
    Reason.TOO_SLOW: Words("It did not come to an end in the time allowed.", _FILE),
    Reason.TOO_MUCH_MEMORY: Words("It would have taken more memory than is allowed.", "Export it smaller or shorter."),
    Reason.INTERNAL: Words("A rule failed in a way that was not foreseen.", _REPORT),
}
