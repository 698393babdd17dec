"""Limits of media, the error they raise, and PyAV, which only videos and HEIC pictures need."""

import errno
from types import ModuleType

from ..support.processes import install_command

MAX_PIXELS = 89_478_485  # of one picture: Pillow's own limit against decompression bombs
MAX_BYTES = 1 << 28  # of one picture from a URL or a pipe
# Error numbers that FFmpeg also gives for damaged files; any other one comes from a disk, share or device.
OF_DAMAGE = {errno.EAGAIN, errno.EDOM, errno.EINVAL, errno.ENOMEM, errno.ENOSYS, errno.EPERM, errno.ERANGE}


class MediaError(ValueError):
    """A picture or video can't be read or written; the message names it and says why."""


class ReadError(MediaError):
    """A disk, share or device failed while a source was read: the source itself may be whole."""


def is_read_error(error: Exception) -> bool:
    """Whether an exception comes from a disk, share or device, and not from damage in what was read."""
    code = getattr(error, "errno", None)  # errors of Pillow have none, FFmpeg's own numbers are none of the system
    return code in errno.errorcode and code not in OF_DAMAGE


def load_av(need: str) -> ModuleType:
    """PyAV, or a MediaError that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise MediaError(f"{need} needs PyAV: {install_command('cli')}") from error
    av.logging.set_level(None)  # with any level, a decoding thread that logs can lock up with one that closes its file
    return av
