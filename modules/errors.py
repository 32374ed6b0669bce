"""Everything that can go wrong in the domain, as one tree; no HTTP in it.

AssistantError
├── ConfigurationError            a setting or a file of the installation is wrong: the server does not start
│   └── WeightsError              hash, shape, labels or card of the CNN's weights do not fit
├── ImageError                    the upload is the problem
│   ├── UndecodableImage          damaged, truncated, empty or lying about itself
│   ├── UnsupportedImageType      not PNG, JPEG or DICOM, or a kind of these that is not read
│   ├── MultipleFrames            an animation or a multi-frame DICOM
│   ├── FileTooLarge              more bytes than the limit
│   ├── TooManyPixels             more pixels than the limit
│   └── GateRefusal               decoded well, but not fit to be analysed
│       ├── NotAChestRadiograph
│       ├── InvertedGreyscale
│       └── RotatedFilm
├── InvalidSymptoms               the symptoms are too long
├── ReaderUnavailable             a second reader cannot run or failed; the analysis goes on without it
├── Busy                          the queue is full
└── OutOfResources                no disk space, memory, open files or threads are left: the film is not to blame

`code` is stable: clients may branch on it. `str(error)` is written for the person who sent the film and says what
to do; it never holds a name, a header value of a patient or a path of the server.
"""

import errno

NO_THREAD = "can't start new thread"  # Python's words, of a plain RuntimeError
SHORTAGES = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS}
)


class AssistantError(Exception):
    """Base of every error that the project raises on purpose."""

    code = "internal_error"


class ConfigurationError(AssistantError):
    """A setting, or a file of the installation, cannot be used."""

    code = "configuration_error"


class WeightsError(ConfigurationError):
    """The weights and what describes them do not fit together."""

    code = "weights_error"


class ImageError(AssistantError):
    """The uploaded file cannot be analysed."""

    code = "image_error"


class UndecodableImage(ImageError):
    """The file is damaged, truncated, empty, or its header contradicts its content."""

    code = "undecodable_image"


class UnsupportedImageType(ImageError):
    """The file is not a PNG, JPEG or DICOM image, or a variety of them that is not read."""

    code = "unsupported_image_type"


class MultipleFrames(ImageError):
    """The file holds several frames where one radiograph is expected."""

    code = "multiple_frames"


class FileTooLarge(ImageError):
    """The file has more bytes than the limit."""

    code = "file_too_large"


class TooManyPixels(ImageError):
    """The image has more pixels than the limit, by its own header."""

    code = "too_many_pixels"


class GateRefusal(ImageError):
    """The input gate refuses the film; `score` in [0, 1] says how much it looks like a frontal chest radiograph."""

    code = "gate_refusal"

    def __init__(self, message: str, score: float | None = None) -> None:
        super().__init__(message)
        self.score = score


class NotAChestRadiograph(GateRefusal):
    """The image, or its header, does not look like a frontal chest radiograph."""

    code = "not_a_chest_radiograph"


class InvertedGreyscale(GateRefusal):
    """The film looks like a chest radiograph with black and white exchanged."""

    code = "inverted_greyscale"


class RotatedFilm(GateRefusal):
    """The film looks like a chest radiograph turned by 90, 180 or 270 degrees."""

    code = "rotated_film"


class InvalidSymptoms(AssistantError):
    """The symptoms cannot be used as they were sent."""

    code = "invalid_request"


class ReaderUnavailable(AssistantError):
    """A second reader cannot run, or failed; its text is the reason that the answer gives."""

    code = "reader_unavailable"


class Busy(AssistantError):
    """No capacity now; `retry_after_s` says when to try again."""

    code = "busy"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OutOfResources(AssistantError):
    """The machine has run out of something that every film needs."""

    code = "out_of_resources"


def shortage_in(exc: BaseException | None) -> Exception | None:
    """Return what says that the machine has run out of something, of an error and its causes; None: nothing does."""
    while exc is not None:
        if (
            isinstance(exc, MemoryError | OutOfResources)
            or (isinstance(exc, OSError) and exc.errno in SHORTAGES)
            or (isinstance(exc, RuntimeError) and str(exc) == NO_THREAD)
        ):
            return exc
        exc = exc.__cause__
    return None
