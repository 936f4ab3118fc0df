"""What reading a zip archive raises where something is wrong with it: npz files and torch files are such archives."""

import struct
import zipfile
import zlib

ZIP_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
)
"""For archives that are cut off, damaged or of another kind, and for npz files that hold objects.

A damaged byte may call an entry encrypted (RuntimeError) or compressed in a way that zipfile does not know
(NotImplementedError, a RuntimeError).
"""
