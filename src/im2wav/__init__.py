"""Hearing pictures: generate the sound that belongs to a photo or a video."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from im2wav.inference.api import Im2Wav, Sound

__all__ = ["Im2Wav", "Sound"]


def __getattr__(name: str) -> Any:
    """`Im2Wav` and `Sound`, imported when they are asked for: the entries and their help need not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'im2wav' has no attribute {name!r}")
    from im2wav.inference import api

    return getattr(api, name)
