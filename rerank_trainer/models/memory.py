"""Memory: what is free on a device, what was used at most, what a forward takes, and which errors say it is out."""

from __future__ import annotations

import ctypes
import functools
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

T = TypeVar("T")

# What errors say that are no torch.OutOfMemoryError: of the CPU, of the CUDA runtime, of Apple's GPUs, of cuBLAS.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def free_bytes(device: torch.device) -> int:
    """The bytes that can still be allocated on the device; on the CPU, those of the machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(psutil.virtual_memory().available)


def give_back_freed_memory() -> None:
    """Have the C library hand back to the operating system what has been freed, if it is one that can (glibc)."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def forget_peak(device: torch.device) -> None:
    """Let :func:`peak_bytes` count from here on, where the device can: a CPU remembers that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """The most bytes that were in use on the device; on the CPU by the whole process, None where no system says so."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device has no memory left: PyTorch's own, or one of what it calls."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


def with_saved_bytes(function: Callable[[], T], *, without: Iterable[Tensor] = ()) -> tuple[T, int]:
    """What the function returns, and the bytes that autograd keeps until the backward of it.

    Args:
        function: A forward.
        without: Tensors that live anyway, such as parameters.

    >>> weight = torch.ones(3, 3, requires_grad=True)
    >>> _, saved = with_saved_bytes(lambda: torch.ones(5, 3) @ weight, without=[weight])
    >>> saved  # the float32 input, 5 x 3
    60
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in without}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = function()
    return result, sum(sizes.values())


def with_peak_bytes(function: Callable[[], T], *, without: Iterable[Tensor] = ()) -> tuple[T, int]:
    """What the function returns, and the most bytes that the tensors which it makes take at the same time.

    It sees the tensors between operations, not what one operation needs while it runs. Copies of ``without`` in another
    type, as autocast makes them, do not grow with the rows and are left out.

    Args:
        function: A forward.
        without: Tensors that live anyway, such as parameters.

    >>> def forward():
    ...     tensor = torch.ones(100)
    ...     for _ in range(5):
    ...         tensor = tensor * 2
    ...     return tensor
    >>> with_peak_bytes(forward)[1]  # one tensor of 400 bytes, and the one made of it
    800
    """
    with _LiveTensors(without) as live:
        result = function()
    return result, live.peak


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, until nothing holds them any more."""

    supports_higher_order_operators = True  # flex attention is one

    @classmethod
    def is_infra_mode(cls) -> bool:
        """True: PyTorch refuses to run what it has compiled, such as flex attention, under other modes."""
        return True

    def __init__(self, without: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._bytes = 0
        self._others = list(without)  # held, so that no new storage gets the place of one of them
        self._outside = frozenset(tensor.untyped_storage()._cdata for tensor in self._others)
        self._inside: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload):
            with (
                self
            ):  # an operation made of others, whose tensors count as well; inference mode does not take it apart
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        is_copy = func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._outside
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._note(storage, 0 if is_copy else storage.nbytes())
        return result

    def _note(self, storage: torch.UntypedStorage, size: int) -> None:
        place = storage._cdata
        if place in self._inside or place in self._outside:  # a view, or written in place
            return
        self._inside.add(place)
        self._bytes += size
        self.peak = max(self.peak, self._bytes)
        weakref.finalize(storage, self._forget, place, size).atexit = False

    def _forget(self, place: int, size: int) -> None:
        self._inside.discard(place)
        self._bytes -= size
