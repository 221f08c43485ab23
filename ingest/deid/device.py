"""The scanner and the calibrated regions that a DICOM header states, as checked values."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """What a reviewed template is chosen by. Words come from the closed tables only; None is unknown."""

    manufacturer: str | None = None
    model: str | None = None
    software: str | None = None  # the major version, digits only


@dataclass(frozen=True, slots=True)
class Region:
    """One item of SequenceOfUltrasoundRegions (0018,6011), PS3.3 C.8.5.5, as it stands in the file: not validated.

    x1 and y1 lie one past the last pixel (the file's own are inside: 1 was added).
    """

    x0: int
    y0: int
    x1: int
    y1: int
    spatial_format: int  # 1 two-dimensional, 2 M-mode, 3 spectral, 4 waveform, 5 graphics
    data_type: int  # 1 tissue, 2 colour flow, 3 and 4 Doppler, 0xA ECG, 0xD grey bar, 0xE colour bar
    mm_x: float | None = None  # width of a pixel; None if not stated in centimetres, or not believable
    mm_y: float | None = None  # its height
