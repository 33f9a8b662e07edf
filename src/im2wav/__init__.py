"""Image-to-audio and video-to-audio generation."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from im2wav.inference.api import Im2Wav
    from im2wav.inference.generate import GeneratedAudio

__all__ = ["GeneratedAudio", "Im2Wav", "__version__"]

try:
    __version__ = version("im2wav")  # from the git tag that it was built from
except PackageNotFoundError:  # run from its sources, without installation
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    """Import `Im2Wav` and `GeneratedAudio` at first use: commands and their help start without torch."""
    if name not in __all__:
        raise AttributeError(f"module 'im2wav' has no attribute {name!r}")
    from im2wav.inference import api

    return getattr(api, name)
