"""Limits of media, the error they raise, and PyAV, which only videos and HEIC pictures need."""

from types import ModuleType

from ..support.processes import install_command

MAX_PIXELS = 89_478_485  # of one picture: Pillow's own limit against decompression bombs
MAX_BYTES = 1 << 28  # of one picture from a URL or a pipe


class MediaError(ValueError):
    """A picture or video can't be read or written; the message names it and says why."""


def load_av(need: str) -> ModuleType:
    """PyAV, or a MediaError that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise MediaError(f"{need} needs PyAV: {install_command('cli')}") from error
    av.logging.set_level(None)  # with any level, a decoding thread that logs can lock up with one that closes its file
    return av
