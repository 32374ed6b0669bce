"""What zip archives from anywhere can raise when they are opened or unpacked."""

import lzma
import struct
import zipfile
import zlib

# Beside OSError: damaged, encrypted, of a kind that is not read, with names that are no text, or claiming a size that
# no memory holds.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    RuntimeError,
    EOFError,
    ValueError,
    MemoryError,
)
