"""Which DICOM objects are ultrasound pictures, and which are refused for what they are (anonymization.md H10)."""

import re

from ingest.deid.reasons import Reason

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_DIRECTORY = "1.2.840.10008.1.3.10"
ULTRASOUND = frozenset(_STORAGE + end for end in ("6.1", "3.1", "6", "3"))  # the last two are retired
_CAPTURE = frozenset(_STORAGE + end for end in ("7", "7.1", "7.2", "7.3", "7.4"))
# By the first numbers behind _STORAGE: spectroscopy, curves, overlays, waveforms, presentation states, raw data and
# registrations, surfaces, reports and key objects, documents, plans; then hanging protocols and colour palettes.
_NO_IMAGE = re.compile(
    re.escape("1.2.840.10008.5.1.4.")
    + r"(1\.1\.(4\.2|8|9|10|11|66|67|68|88|90|104|200|201|481\.([3-9]|1\d))|3[4-9]|4[0-5])(\..*)?"
)
_NO_IMAGE_MODALITIES = frozenset(("AU", "DOC", "HD", "KO", "PLAN", "PR", "REG", "RTPLAN", "RTRECORD", "SEG", "SR"))
_NO_IMAGE_MODALITIES |= {"ECG", "EEG", "EMG", "EOG", "EPS", "RESP", "FID"}
_ULTRASOUND_MODALITIES = frozenset(("US", "IVUS"))


def refuse_kind(sop_class: str, modality: str, is_directory: bool) -> Reason | None:
    """Why an object of this SOP class (0008,0016) and modality (0008,0060) is no ultrasound picture; None if it is one.

    Ultrasound is what has an ultrasound class (PS3.4 B.5) and no other modality, or no class but the modality US.
    A secondary capture goes on if its modality is US: whether it is a form, the search for the scan area shows (ours).
    An ultrasound volume (Enhanced US Volume) is no picture of a screen and is refused as not ultrasound (ours).
    """
    if is_directory or sop_class == _DIRECTORY:
        return Reason.DICOMDIR
    if _NO_IMAGE.fullmatch(sop_class) or modality in _NO_IMAGE_MODALITIES:
        return Reason.NOT_AN_IMAGE
    ours = modality in _ULTRASOUND_MODALITIES
    if sop_class in _CAPTURE:
        return None if ours else Reason.SCREEN_FORM
    if sop_class in ULTRASOUND:
        return None if ours or not modality else Reason.NOT_ULTRASOUND
    if not sop_class:
        return None if ours else Reason.NOT_ULTRASOUND
    # A vendor's own class is a vendor's own format, whatever its modality.
    return Reason.NOT_ULTRASOUND if sop_class.startswith("1.2.840.10008.") else Reason.NOT_AN_IMAGE
