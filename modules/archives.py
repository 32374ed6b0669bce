"""What is unpacked of zip archives from anywhere, and what they can raise."""

import lzma
import struct
import zipfile
import zlib
from collections.abc import Sequence

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

# Deflate holds 32 KiB and gives at most 1032 bytes for one. LZMA takes the memory that a member asks for, up to 4 GiB,
# and bzip2 gives a million bytes for twenty and takes its time: both are left to the user to unpack.
BOUNDED_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
LOCAL_HEADER_BYTES = 30  # APPNOTE 4.3.7, without the name


def overlap(members: Sequence[zipfile.ZipInfo]) -> bool:
    """Whether the data of two members share bytes, so that one block is unpacked many times over."""
    ends = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < ends:
            return True
        ends = member.header_offset + LOCAL_HEADER_BYTES + len(member.orig_filename) + member.compress_size
    return False
