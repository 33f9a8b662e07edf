"""Replaces the functions of torch.cuda by those of the simulated machine."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import torch

from cuda import graph
from cuda.card import CardMode, CardTensor
from cuda.state import machine

TOTAL_MEMORY, FREE_MEMORY = 80 * 10**9, 70 * 10**9
PROPERTIES = SimpleNamespace(name="simulated", major=9, minor=0, total_memory=TOTAL_MEMORY, multi_processor_count=132)


class Stream:
    """Work is done at once and in order: streams have nothing to do."""

    def __init__(self, *_: Any, **__: Any): ...

    def wait_stream(self, _: Any) -> None: ...

    def wait_event(self, _: Any) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event or Event()

    def query(self) -> bool:
        graph.call_cuda()
        return True

    def synchronize(self) -> None:
        machine.sync("stream.synchronize")


class Event:
    """Has always happened."""

    def __init__(self, *_: Any, **__: Any): ...

    def record(self, _: Any = None) -> None: ...

    def wait(self, _: Any = None) -> None: ...

    def elapsed_time(self, _: Any) -> float:
        return 1.0

    def query(self) -> bool:
        graph.call_cuda()
        return True

    def synchronize(self) -> None:
        machine.sync("event.synchronize")


class OnDevice:
    """torch.cuda.device: another current device for a while."""

    def __init__(self, device: Any):
        self.device, self.before = device, 0

    def __enter__(self) -> None:
        self.before = machine.current
        set_device(self.device)

    def __exit__(self, *_: Any) -> None:
        machine.current = self.before


def set_device(device: Any) -> None:
    """Change the current device; nothing for a device without an index.

    Raises:
        RuntimeError: there is no such device.
    """
    index = device if isinstance(device, int) else torch.device(device).index
    if index is not None and not 0 <= index < machine.num_devices:
        raise RuntimeError(f"CUDA error: invalid device ordinal {index}")
    machine.current = machine.current if index is None else index


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_: Any):
    """In training scaled_dot_product_attention would pick a kernel for CUDA: it gets the one for CPUs."""
    if not isinstance(q, CardTensor) or torch.is_inference_mode_enabled():
        return REAL_ATTENTION(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def run_thread(thread: threading.Thread) -> None:
    """Thread.run with the mode, which belongs to one thread."""
    with CardMode():
        REAL_RUN(thread)


REAL_RUN = threading.Thread.run
REAL_ATTENTION = torch.nn.functional.scaled_dot_product_attention


def _fixed(value: Any) -> Any:
    return lambda *_, **__: value


def replacements() -> dict[str, Any]:
    """Name in torch.cuda -> what stands there from now on."""
    nothing = ("_lazy_init", "reset_peak_memory_stats", "empty_cache", "ipc_collect", "manual_seed", "manual_seed_all")
    return {
        **{name: _fixed(None) for name in (*nothing, "set_rng_state", "set_rng_state_all")},
        **{name: _fixed(True) for name in ("is_available", "is_initialized", "is_bf16_supported")},
        "device_count": lambda: machine.num_devices,
        "current_device": lambda: machine.current,
        "set_device": set_device,
        "device": OnDevice,
        "synchronize": lambda device=None: machine.sync("synchronize"),
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda device=None: Stream(),
        "default_stream": lambda device=None: Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "graph": graph.capture,
        "CUDAGraph": graph.Graph,
        "mem_get_info": _fixed((FREE_MEMORY, TOTAL_MEMORY)),
        "memory_allocated": lambda device=None: machine.allocated(),
        "max_memory_allocated": lambda device=None: machine.allocated(),
        "memory_stats": _fixed({}),
        "get_device_name": _fixed(PROPERTIES.name),
        "get_device_capability": _fixed((PROPERTIES.major, PROPERTIES.minor)),
        "get_device_properties": _fixed(PROPERTIES),
        "get_rng_state": lambda device=None: torch.zeros(1, dtype=torch.uint8),
        "get_rng_state_all": list,
    }


def install() -> None:
    """Put the simulated machine in the place of torch.cuda."""
    for name, value in replacements().items():
        setattr(torch.cuda, name, value)
    torch.cuda.amp.common.amp_definitely_not_available = _fixed(False)
    torch.nn.functional.scaled_dot_product_attention = attention
    threading.Thread.run = run_thread  # type: ignore[method-assign]
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") is made on the CPU, then copied
    torch.__future__.set_swap_module_params_on_conversion(True)  # Module.to: a plain tensor becomes a CardTensor
