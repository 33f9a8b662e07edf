"""Half-precision plugin that does not cast the batch."""

from typing import Any

from lightning.pytorch.plugins.precision import HalfPrecision


class HalfWeights(HalfPrecision):
    """Weights in bf16 or fp16 (`trainer.precision=bf16-true`) without casting the batch.

    Lightning casts all floating-point tensors of a batch. Audio in bf16 encodes to different codes, and bf16 cannot
    represent times in samples (8 significant bits). The networks cast their inputs themselves.
    """

    def convert_input(self, data: Any) -> Any:
        """Return the batch unchanged."""
        return data
