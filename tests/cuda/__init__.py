"""CUDA without a GPU: the real commands run on a simulated card that computes on the CPU.

A test marked `fake_cuda` is an ordinary pytest test. `conftest.py` runs it in a child process (`child.py`), because the
C++ shim must be loaded before torch, and shows the child's report as its own. The card refuses what CUDA refuses
(tensors on two devices, host copies while a graph is captured), counts each time the host waits for the device, and
replays CUDA graphs operation by operation.

Not simulated: the numerics of GPU kernels, the order of streams, NCCL, further processes and Triton.
"""

from pkgutil import extend_path

# a GPU build of torch imports NVIDIA's cuda.bindings: this package must not hide it
__path__ = extend_path(__path__, __name__)
