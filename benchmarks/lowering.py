"""Which part of the model computes in which format: the rows of a precision table.

A CPU's autocast is no stand-in for CUDA's: it leaves group norms in the low type, where CUDA takes
them back to float32. `CudaRules` follows CUDA's list with real bfloat16 or float16 tensors between
the operations, or TF32's shorter mantissa within them; products are summed in float32, as tensor
cores do. It gives a GPU's errors, approximately, and says nothing of its speed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sdseg_cli.model.sdseg import SDSeg, full_precision

PARTS = ("encoder", "unet", "decoder")
COMBINATIONS: tuple[tuple[str, ...], ...] = (
    ("encoder",),
    ("unet",),
    ("decoder",),
    ("encoder", "decoder"),
    PARTS,
)

PRODUCTS = frozenset({torch.conv2d, torch.conv1d, F.linear, F.scaled_dot_product_attention})
"""What runs on tensor cores; every product of the three networks is one of these."""
NORMS = frozenset({F.group_norm})
"""What CUDA's autocast computes in float32."""
TF32_DROPPED_BITS = 13
"""Of float32's 23 bits of mantissa TF32 keeps 10."""


Context = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Lowering:
    """Which parts compute how.

    Attributes:
        name: "parts/format", in the results file and the table.
        contexts: What a part computes within; parts that are not named compute in float32.
        timed: Whether its speed means anything.
        float16_weights: Round the weights first.
    """

    name: str
    contexts: Mapping[str, Context]
    timed: bool = True
    float16_weights: bool = False

    def around(self, part: str) -> AbstractContextManager[object]:
        """What a part computes within."""
        return self.contexts.get(part, full_precision)()


FLOAT32 = Lowering("nothing/float32", {})


def lowerings(device: torch.device) -> list[Lowering]:
    """Every row but float32's own: on a CPU also those that a GPU would give."""
    # Its arithmetic is float32's, and so is its speed.
    rows = [Lowering("+".join(PARTS) + "/float16 weights", {}, timed=False, float16_weights=True)]
    if device.type != "cuda":
        rows += _rows(CudaRules, partial(CudaRules, "tf32"), " as on CUDA")

    def autocast(form: str) -> AbstractContextManager[object]:
        return torch.autocast(device.type, getattr(torch, form))

    return rows + _rows(autocast, tf32_allowed if device.type == "cuda" else None)


def _rows(
    lower: Callable[[str], AbstractContextManager[object]], tf32: Context | None, suffix: str = ""
) -> list[Lowering]:
    """The rows of one way to lower; with a suffix it is emulated, and so not timed."""
    chosen: dict[str, dict[str, Context]] = {}
    if tf32 is not None:
        chosen |= {f"{'+'.join(p)}/tf32": dict.fromkeys(p, tf32) for p in (("unet",), PARTS)}
    for form in ("bfloat16", "float16"):
        low: Context = partial(lower, form)
        chosen |= {f"{'+'.join(p)}/{form}": dict.fromkeys(p, low) for p in COMBINATIONS}
        if tf32 is not None:
            mixed = {"encoder": low, "unet": tf32, "decoder": low}
            chosen[f"{'+'.join(PARTS)}/{form}, U-Net tf32"] = mixed
    return [Lowering(name + suffix, parts, not suffix) for name, parts in chosen.items()]


@contextmanager
def tf32_allowed() -> Iterator[None]:
    """TF32 in convolutions and matrix products."""
    with full_precision():  # it puts back what was allowed before
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        yield


def to_tf32(value: Tensor) -> Tensor:
    """float32 rounded to TF32's 10 bits of mantissa, halves away from zero."""
    half = 1 << (TF32_DROPPED_BITS - 1)
    bits = value.view(torch.int32) + half
    return ((bits >> TF32_DROPPED_BITS) << TF32_DROPPED_BITS).view(torch.float32)


class CudaRules(TorchFunctionMode):
    """Within it the networks compute as under CUDA's autocast, or with TF32 allowed.

    Args:
        form: "bfloat16", "float16" or "tf32".
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self.low: torch.dtype | None = None if form == "tf32" else getattr(torch, form)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in PRODUCTS:
            answer = func(*map(self._rounded, args), **kwargs)
            return answer if self.low is None else answer.to(self.low)
        if func in NORMS and self.low is not None:
            return func(*map(_as_float32, args), **kwargs)
        return func(*args, **kwargs)

    def _rounded(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if self.low is not None:
            return value.to(self.low).float()
        is_bias = value.ndim == 1  # added in float32, never multiplied
        return value if is_bias else to_tf32(value)


def _as_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def with_float16_weights(model: SDSeg) -> SDSeg:
    """A copy whose weights have been through float16, as an exported package holds them."""
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for value in rounded.parameters():
            value.copy_(value.half().float())
    return rounded
