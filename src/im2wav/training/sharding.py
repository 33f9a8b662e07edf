"""Weights, gradients and moments of the optimiser sharded over all processes."""

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy


class FullySharded(ModelParallelStrategy):
    """FSDP2 over all processes of all nodes; checkpoints are one file, as with every other strategy.

    Unlike Lightning's `fsdp` it also runs on CPUs, where it can be tested.
    """

    def __init__(self, **options: Any):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        """Set the mesh up: one axis, over everything."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
