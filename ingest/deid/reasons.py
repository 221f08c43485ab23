"""Why a private item did not get in: a closed list, so that no text of a source can reach a log or the lake."""

from enum import StrEnum

from usdata.errors import DataError


class State(StrEnum):
    """What became of an item; every item of a source has exactly one."""

    ACCEPTED = "accepted"
    QUARANTINED = "quarantined"  # uncertain: a person should look at it, on the private side
    REJECTED = "rejected"  # not ultrasound, or of a kind that is not read


class Relaxed(StrEnum):
    """A rule that a run leaves out; the catalog's `deid_profile` and the audit name it."""

    TEXT = "text"  # no search for text inside the scan area


class Reason(StrEnum):
    """A word that the quarantine table and the audit store. Say anything new here, never in free text."""

    # the file
    MISSING = "missing"
    CHANGED = "changed"  # between the first look at it and the last
    EMPTY_FILE = "empty_file"
    TRUNCATED = "truncated"
    UNREADABLE = "unreadable"
    TOO_LARGE = "too_large"
    UNSUPPORTED = "unsupported"  # neither DICOM nor an image or video that is read
    TRAILING_BYTES = "trailing_bytes"
    LINK_OUTSIDE = "link_outside"
    LINK_TO_FOLDER = "link_to_folder"
    BROKEN_LINK = "broken_link"
    NOT_A_FILE = "not_a_file"
    UNREADABLE_FOLDER = "unreadable_folder"
    NOT_ON_CARD = "not_on_card"  # the card's layout, labels or tables do not fit the file
    # a DICOM object
    NOT_ULTRASOUND = "not_ultrasound"
    NOT_AN_IMAGE = "not_an_image"  # report, PDF, presentation state, raw data, waveform
    DICOMDIR = "dicomdir"
    SCREEN_FORM = "screen_form"  # secondary capture
    NO_PIXELS = "no_pixels"
    DEEP_NESTING = "deep_nesting"
    PLUGIN_MISSING_JPEG_LOSSLESS = "plugin_missing_python_gdcm"
    PLUGIN_MISSING_JPEG_LS = "plugin_missing_pyjpegls"
    PLUGIN_MISSING_JPEG_2000 = "plugin_missing_pylibjpeg_openjpeg"
    PLUGIN_MISSING_RLE = "plugin_missing_pylibjpeg_rle"
    TRANSFER_SYNTAX = "transfer_syntax"  # no decoder is known for it
    PHOTOMETRIC = "photometric"  # colours that are not understood
    PIXEL_LENGTH = "pixel_length"  # frames x size and the bytes that are there differ
    FRAME_MISSING = "frame_missing"
    # identity
    NO_IDENTITY = "no_identity"  # neither a patient nor a study to group by
    # pixels
    NO_SCAN_AREA = "no_scan_area"
    AREA_DIFFERS = "area_differs"  # the sector moves or changes its size within a clip
    TEXT_IN_SCAN_AREA = "text_in_scan_area"
    NOT_ZERO_OUTSIDE = "not_zero_outside"
    SELF_CHECK = "self_check"  # an identifier of the source was found in what would have been written
    # the process that worked on it
    DECODER_DIED = "decoder_died"
    TOO_SLOW = "too_slow"
    TOO_MUCH_MEMORY = "too_much_memory"
    INTERNAL = "internal"  # a bug of ours met this file: report it with the item's key

    @classmethod
    def of(cls, word: str, otherwise: "Reason | None" = None) -> "Reason":
        """The reason of a reader's word; a word that is none of ours becomes `otherwise`, unreadable if not given."""
        return cls(word) if word in cls.__members__.values() else otherwise or cls.UNREADABLE

    @property
    def state(self) -> State:
        """Rejected for what is no ultrasound picture at all; quarantined for the rest."""
        return State.REJECTED if self in _REJECTED else State.QUARANTINED


# What may be the machine's fault and not the file's: tried twice, and again in the next run.
PASSING = frozenset(
    {Reason.MISSING, Reason.CHANGED, Reason.DECODER_DIED, Reason.TOO_SLOW, Reason.TOO_MUCH_MEMORY, Reason.INTERNAL}
)
_REJECTED = frozenset(
    {Reason.UNSUPPORTED, Reason.NOT_ULTRASOUND, Reason.NOT_AN_IMAGE, Reason.DICOMDIR, Reason.SCREEN_FORM}
)


class Refusal(DataError):
    """A private item is refused. Its message is the reason's word alone: nothing of the source can be in it.

    `where` is a place in our own code, for `Reason.INTERNAL`.
    """

    where: str | None = None

    def __init__(self, reason: Reason, step: str) -> None:
        super().__init__(reason.value, f"The item was refused: {reason.value}.", step=step)
