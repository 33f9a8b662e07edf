"""Compiles the C++ shim once and loads it. Must run before torch is imported: torch asks once whether there is CUDA."""

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

loaded: list[ctypes.CDLL] = []
SOURCE = Path(__file__).with_name("shim.cpp")


def compile_shim(torch_root: Path) -> Path:
    """The compiled shim of this torch version, from the cache in the temporary folder where it is there already."""
    key = SOURCE.read_bytes() + (torch_root / "version.py").read_bytes() + str(torch_root).encode()
    target = Path(tempfile.gettempdir()) / f"im2wav_cuda_shim_{os.getuid()}_{hashlib.sha256(key).hexdigest()[:16]}.so"
    if target.is_file():
        return target
    unfinished = target.with_suffix(f".{os.getpid()}")
    folders = [f"-I{torch_root}/include", f"-I{torch_root}/include/torch/csrc/api/include", f"-L{torch_root}/lib"]
    flags = ["-O0", "-std=c++20", "-fPIC", "-shared", "-DUSE_DISTRIBUTED"]
    command = ["g++", *flags, *folders, str(SOURCE), "-o", str(unfinished), "-ltorch_cpu", "-lc10"]
    subprocess.run(command, check=True)
    unfinished.replace(target)  # atomic: several test processes may compile at once
    return target


def load_shim() -> None:
    """Load the shim.

    Raises:
        RuntimeError: torch is imported already, or not installed.
    """
    spec = importlib.util.find_spec("torch")
    if "torch" in sys.modules or spec is None or spec.origin is None:
        raise RuntimeError("load_shim() must be called before torch is imported, and torch must be installed")
    root = Path(spec.origin).parent
    ctypes.CDLL(str(root / "lib" / "libtorch_cpu.so"), ctypes.RTLD_GLOBAL)
    loaded.append(ctypes.CDLL(str(compile_shim(root)), ctypes.RTLD_GLOBAL))


def set_shim_device(index: int) -> None:
    """Tell the C++ of torch which device is the current one."""
    loaded[0].set_current_device(index)
