"""Linear layers and convolutions by the kernels that are fastest on a CPU, for networks that only infer.

    with CPUKernels():
        network(...)

What a layer computes stays the same to rounding. Nothing is kept of the weights. Measured: docs/performance.md.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unclip_hub.models.winograd import TILE, Scratch, convolve, multiply


_LARGE = 30_000_000  # parameters; smaller networks lose more, being asked at every operation, than they gain
_WORTH_A_CALL = 2**20  # multiplications below which a call of oneDNN costs more than it saves
_WIDE = 128  # channels from which Winograd's transforms are small beside the products
_TILES = 64  # below which transforming the filters is most of the work
_FEW_PIXELS = 512  # up to which a convolution is mostly re-ordering its weights


class CPUKernels(TorchFunctionMode):
    """While it is entered, layers on a CPU run so, in this thread and where gradients are off:

    * linear layers and 1 x 1 convolutions in float32 are oneDNN's products (PyTorch takes MKL's, which on an AMD EPYC
      are less than half as fast);
    * wide 3 x 3 convolutions in float32 are Winograd's, see ``models/winograd.py``;
    * those of few pixels are a product of the weight as it lies with the pixels' neighbourhoods;
    * the others stay PyTorch's, in channels-last.

    All else is left as it is: narrow layers, other dtypes than float32 and bfloat16, quantised weights.
    """

    def __enter__(self) -> "CPUKernels":
        self._scratch = Scratch()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        del self._scratch  # as large as a picture's tensors, and networks take turns
        super().__exit__(*exception)

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (func is F.linear or func is F.conv2d) and not types and not torch.is_grad_enabled():
            func = _linear if func is F.linear else self._conv2d
        return func(*args, **(kwargs or {}))

    def _conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        side = _side(input, weight, stride=stride, padding=padding, dilation=dilation, groups=groups)
        if side is None or input.dtype not in (torch.float32, torch.bfloat16) or max(weight.shape[:2]) < _WIDE:
            return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        input = input.contiguous(memory_format=torch.channels_last)
        if min(weight.shape[:2]) < _WIDE:
            return F.conv2d(input, weight, bias, padding=side // 2)
        batch_size, _, height, width = input.shape
        pixels = input.permute(0, 2, 3, 1)  # (b, h, w, c)
        if side == 1:
            return _linear(pixels, weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
        if batch_size * height * width <= _FEW_PIXELS:
            around = F.pad(pixels, (0, 0, 1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)  # (b, h, w, c, 3, 3)
            return _linear(around.flatten(3), weight.flatten(1), bias).permute(0, 3, 1, 2)
        whole = height % TILE == 0 and width % TILE == 0
        if input.dtype == torch.float32 and whole and batch_size * height * width >= _TILES * TILE**2:
            return convolve(input, weight, bias, scratch=self._scratch)
        return F.conv2d(input, weight, bias, padding=1)


def fast_kernels(network: nn.Module, device: torch.device) -> AbstractContextManager:
    """``CPUKernels`` where they were measured to help: on CPUs with AVX-512, for large networks that are not compiled.

    ``torch.backends.mkldnn.flags(enabled=False)`` switches them off, as everything of oneDNN's. Can be entered again.
    """
    here = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
    onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    onednn = onednn and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # private: a later PyTorch may not have it
    large = sum(parameter.numel() for parameter in network.parameters()) >= _LARGE
    return CPUKernels() if here and onednn and large and not _is_compiled(network) else nullcontext()


def keep_freed_memory() -> bool:
    """Have this process keep what it frees, for good, instead of giving it back; whether the C library can: glibc.

    Large pictures' tensors are otherwise fetched from the kernel for every operation, a quarter of the time of Karlo's
    upsampler. The process then stays as large as it ever was.
    """
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return False
    settings = {-4: 0, -1: -1, -2: 2**26}  # mallopt(3): M_MMAP_MAX none, M_TRIM_THRESHOLD never, M_TOP_PAD 64 MiB
    return all([library.mallopt(option, value) for option, value in settings.items()])


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    single = input.dtype == weight.dtype == torch.float32 and input.device.type == weight.device.type == "cpu"
    if not single or input.numel() * len(weight) < _WORTH_A_CALL:
        return F.linear(input, weight, bias)
    return multiply(input, weight, bias)


def _side(
    input: Tensor,
    weight: Tensor,
    *,
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> int | None:
    """1 or 3, the side of the filters of a plain convolution on the CPU that keeps the picture's size; else None."""
    plain = _both(stride) == _both(dilation) == (1, 1) and groups == 1 and input.ndim == 4
    if not plain or input.dtype != weight.dtype or input.device.type != "cpu" or weight.device.type != "cpu":
        return None
    shape = (tuple(weight.shape[2:]), _both(padding))
    return 1 if shape == ((1, 1), (0, 0)) else 3 if shape == ((3, 3), (1, 1)) else None


def _both(value: int | str | Sequence[int]) -> tuple[Any, ...]:
    return (value, value) if isinstance(value, int | str) else tuple(value)


def _is_compiled(network: nn.Module) -> bool:
    return any(
        module._compiled_call_impl is not None or isinstance(module, torch._dynamo.OptimizedModule)
        for module in network.modules()
    )
