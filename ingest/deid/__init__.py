"""De-identification: what leaves a private file is rebuilt from checked values and shown scan area, never scrubbed.

Read `reasons` for why an item stays out, `identity` for pseudonyms, `header` for what is kept of DICOM's tags, `area`
for which pixels are kept, and `item` for the whole way of one file.
"""
