"""`CardTensor`, a tensor that says it is on `cuda:N` and computes on the CPU."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from cuda.graph import VIEWS, Operation
from cuda.state import Block, machine, place

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._foreach_copy_.default, aten._to_copy.default, aten.set_.source_Tensor}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
# operations whose result, or the size of it, the host reads
SYNCS = {
    aten._local_scalar_dense.default: "item",
    aten.equal.default: "equal",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.bincount.default: "bincount",
    aten._unique2.default: "unique",
}
# operations that take no CPU scalar tensors beside CUDA tensors
ONE_DEVICE = {"embedding", "mm", "addmm", "bmm", "index_select", "gather", "cat", "convolution", "native_layer_norm"}


class CardTensor(torch.Tensor):
    """A tensor on the simulated card; `inner` holds its numbers, on the CPU."""

    inner: torch.Tensor
    block: Block

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device, requires_grad: bool = False) -> CardTensor:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        with torch.inference_mode(False):
            new = torch.Tensor._make_wrapper_subclass(
                cls, inner.size(), device=device, requires_grad=requires_grad, **layout
            )
        storage = inner.untyped_storage()
        new.inner, new.block = inner, Block(storage._cdata, storage.nbytes())
        machine.blocks.add(new.block)
        return new

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_: Any) -> str:
        return f"CardTensor({self.inner!r}, {self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> CardTensor:
        new = CardTensor(self.inner.detach().clone(), self.device, self.requires_grad)
        if getattr(self, "_is_param", False):
            new._is_param = True
        memo[id(self)] = new
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        machine.sync("copy to the host (save)")
        return self.inner.detach().__reduce_ex__(protocol)

    def tolist(self) -> Any:
        machine.sync("tolist")
        return self.inner.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any) -> Any:
        return self.numpy()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Call(func, args, kwargs or {}).run()


class CardMode(TorchDispatchMode):
    """While it is on in a thread, tensors can be made on the simulated card, and plain tensors can be pinned."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten._pin_memory.default, aten.pin_memory.default):
            pinned = args[0].clone()
            pinned.is_pinned_by_card = True
            return pinned
        if func is aten.is_pinned.default:
            return getattr(args[0], "is_pinned_by_card", False)
        options = dict(kwargs or {})
        pins = options.pop("pin_memory", None)  # a CPU build cannot
        result = Call(func, args, options).run()
        if pins and not isinstance(result, CardTensor):
            result.is_pinned_by_card = True
        return result


class Call:
    """One call of an operator.

    Attributes:
        cards: arguments on a card.
        plain: arguments on the CPU.
        asked: type of the device that the call names, None where it names none.
        device: where the result is.
    """

    def __init__(self, func: Any, args: Any, kwargs: dict[str, Any]):
        self.func, self.args, self.kwargs = func, args, kwargs
        self.name = func._schema.name.split("::")[1]
        flat = tree_leaves((args, kwargs))
        tensors = [x for x in flat if isinstance(x, torch.Tensor)]
        self.cards = [x for x in tensors if isinstance(x, CardTensor)]
        self.plain = [x for x in tensors if not isinstance(x, CardTensor)]
        named = kwargs.get("device") or next((x for x in flat if isinstance(x, torch.device)), None)
        named = None if named is None else torch.device(named)
        self.asked = None if named is None else named.type
        self.device = self.cards[0].device if self.cards else torch.device("cpu")
        if self.asked == "cuda":
            self.device = torch.device("cuda", machine.current if named.index is None else named.index)
        elif self.asked is not None:
            self.device = named

    def run(self) -> Any:
        """Check the call as CUDA would, count it, record it, and compute its result."""
        if (not self.cards and self.asked != "cuda") or self.asked == "meta":
            return self.func(*tree_map(_inner, self.args), **tree_map(_inner, self.kwargs))
        whole = aten.scaled_dot_product_attention.default  # one kernel on CUDA
        if self.func is not whole and _is_composite(self.func):  # so it arrives in inference mode
            with CardMode():
                result = self.func.decompose(*self.args, **self.kwargs)
            if result is not NotImplemented:
                return result
        self.check()
        if self.func in SYNCS:
            machine.sync(SYNCS[self.func])
        result = self.compute()
        if self.func in (aten._local_scalar_dense.default, aten.equal.default) or self.device.type != "cuda":
            return result
        return self.on_card(result)

    def check(self) -> None:
        """Raise where CUDA would, and count copies between host and device.

        Raises:
            RuntimeError: tensors on different devices, a generator of the CPU, or a copy that a capture does not allow.
        """
        generator = self.kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise RuntimeError(f"expected a generator on cuda, found one on cpu: {self.name} ({place()})")
        devices = {str(x.device) for x in self.cards if x.dim()}
        if self.func not in COPIES and len(devices) > 1:
            self.refuse(devices)
        if self.func is aten._to_copy.default:
            self.check_copy(self.args[0], self.kwargs.get("non_blocking", False))
        elif self.func is aten.copy_.default:
            self.device = self.args[0].device
            self.check_copy(self.args[1], len(self.args) > 2 and self.args[2])
        elif self.func in INDEXING:
            self.check_indices()
        elif self.func not in COPIES and self.cards and any(map(self.must_be_on_card, self.plain)):
            self.refuse({str(self.device), "cpu"})

    def must_be_on_card(self, x: torch.Tensor) -> bool:
        """Whether a CPU tensor is rejected beside CUDA tensors; most operations take CPU scalars."""
        return x.dim() > 0 or self.name in ONE_DEVICE

    def refuse(self, devices: set[str]) -> None:
        """Raise what CUDA raises for mixed devices."""
        found = " and ".join(sorted(devices))
        raise RuntimeError(f"expected all tensors on the same device, found {found}: {self.func} ({place()})")

    def check_copy(self, source: torch.Tensor, non_blocking: bool) -> None:
        """Copies between host and device: the host waits, but for an asynchronous copy from pinned memory."""
        if isinstance(source, CardTensor):
            if self.device.type == "cpu":
                machine.sync("copy to the host")
            return
        is_pinned = getattr(source, "is_pinned_by_card", False)
        if machine.graph is not None or not (is_pinned and non_blocking):
            machine.sync("copy to the device")

    def check_indices(self) -> None:
        """Indices may be on the CPU, at the price of a copy; the size of what a mask selects must be known."""
        if not isinstance(self.args[0], CardTensor):
            self.refuse({str(self.cards[0].device), "cpu"})
        for index in self.args[1]:
            if index is not None and not isinstance(index, CardTensor):
                machine.sync("copy of an index to the device")
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                machine.sync("index by a mask")

    def compute(self) -> Any:
        """Compute on the CPU; count and record what the device would do."""
        args, kwargs = self.inner_arguments()
        graph = machine.graph
        if graph is not None and (self.device.type != "cuda" or self.device.index != graph.device):
            graph = None  # a capture sees the work of its own device alone
        if graph is not None:
            graph.prepare(self.func, args, kwargs)
        operation = Operation(self.name, self.func, args, kwargs, self.func(*args, **kwargs))
        machine.operations[self.name] += operation.is_kernel
        if graph is not None:
            graph.record(operation)
        return operation.result

    def inner_arguments(self) -> tuple[Any, dict[str, Any]]:
        """The arguments with the tensors that hold the numbers, and the CPU for a card."""
        flat, spec = tree_flatten((self.args, self.kwargs))
        cpu = torch.device("cpu")
        args, kwargs = tree_unflatten([cpu if isinstance(x, torch.device) else _inner(x) for x in flat], spec)
        if "device" in kwargs and kwargs["device"] is not None:
            kwargs["device"] = cpu
        kwargs.pop("pin_memory", None)
        return args, kwargs

    def on_card(self, result: Any) -> Any:
        """The result as tensors on the card: in-place operations give back the argument that they changed."""
        if self.func is aten._to_copy.default and result is _inner(self.args[0]):
            result = result.clone()
        known = {id(x.inner): x for x in self.cards}

        def wrap(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                return x
            return known[id(x)] if id(x) in known else CardTensor(x, self.device)

        wrapped = tree_map(wrap, result)
        is_in_place = self.func._schema.is_mutable and not self.name.startswith("_fused")
        if is_in_place or self.name in VIEWS:
            with contextlib.suppress(RuntimeError):
                return return_and_correct_aliasing(self.func, self.args, self.kwargs, wrapped)
        return wrapped


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, CardTensor) else x


def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
