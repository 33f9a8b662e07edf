"""What Lightning's precision plugins do otherwise than this project needs."""

from typing import Any

from lightning.pytorch.plugins.precision import HalfPrecision


class HalfWeights(HalfPrecision):
    """Weights in bf16 or fp16 (`trainer.precision=bf16-true`), with the batch left as it was read.

    Lightning casts all floating-point tensors of a batch. Audio in bf16 gives other codes, and times in samples do not
    fit into its 8 bits; the networks cast what they read by themselves.
    """

    def convert_input(self, data: Any) -> Any:
        """Leave the batch as it is."""
        return data
