"""How far each part of a trained model may be lowered: error of z0, Dice and speed by precision.

    python -m benchmarks.precision --run openkbp/tiny --workspace demo --out results.json

Slices with foreground, spread over the cases of a split, are predicted in float32 and then with the
vision encoder, the U-Net, the decoder or several of them lowered. Each row is stored as soon as it
is done and skipped when the same command is run again. What is not lowered is float32, without
TF32; Eq. 2 always is. Speed is of the whole prediction, timed in turn with float32.

    bfloat16, float16     torch.autocast, as this device has it
    float16 weights       rounded once, computed in float32: what an exported package holds, and a
                          run's best checkpoint too (then the row is zero)
    tf32                  CUDA only
    "... as on CUDA"      on a CPU only: CUDA's roundings, computed in float32; errors without speed

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
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.results import Results, Row, command, machine, seconds
from sdseg_cli.core.config import THRESHOLD
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.inference.engine import shifted
from sdseg_cli.metrics.mask_metrics import MaskPair, dice
from sdseg_cli.model import diffusion
from sdseg_cli.model.interface import as_three_channels
from sdseg_cli.model.runtime import choose_device
from sdseg_cli.model.sdseg import SDSeg, full_precision
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.package import sdseg_of
from sdseg_cli.runs.run_folder import RunDir, find_run
from sdseg_cli.training.batches import open_split

SAFE = 0.001
"""A precision whose Dice differs from float32's by less is as good."""
CHUNK = {"cpu": 1, "mps": 1, "cuda": 16}
"""Slices at a time; a CPU predicts them one by one."""
TIMINGS = 12
"""Chunks a row is timed on."""

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


@dataclass(frozen=True)
class Sample:
    """The slices that are predicted."""

    pixels: Tensor
    """(N,H,W) float32 in [-1,1]."""
    reference: Tensor
    """(N,H,W) bool."""
    numbers: list[int]
    """Slice number within its case: it names the starting noise."""
    cases: list[int]
    """Case of each slice."""


def sample_of(manifest: Manifest, split: str, limit: int) -> Sample:
    """About `limit` slices with foreground, as many of each case, evenly spaced within it."""
    cases = manifest.cases(split)
    foreground = [manifest.foreground_slices(case) for case in cases]
    slices = open_split(manifest, split)
    share = max(1, round(limit / len(cases)))
    chosen: set[tuple[int, int]] = set()
    for number, found in enumerate(foreground):
        count = min(share, len(found))
        chosen |= {(number, found[int((i + 0.5) * len(found) / count)]) for i in range(count)}
    positions = [i for i, place in enumerate(slices.places) if place in chosen]
    batch = slices.batch(positions)
    places = [slices.places[i] for i in positions]
    reference = slices.masks(batch.labels)[:, 0]
    return Sample(batch.image, reference, [k for _, k in places], [c for c, _ in places])


class Comparison:
    """A trained model, a sample, and float32's answer to it.

    Args:
        run: The run; its averaged U-Net is used, as in prediction.
        manifest: The prepared set it was trained on.
        split: Whose slices to predict.
        limit: About how many.
        device: Where to compute.

    Raises:
        ConfigError: The set was prepared anew since.
    """

    def __init__(
        self, run: RunDir, manifest: Manifest, split: str, limit: int, device: torch.device
    ) -> None:
        checkpoint = Checkpoint.load(run.best)
        if checkpoint.data != manifest.inference_settings():
            raise ConfigError(f"{manifest.name} was prepared anew since.", "Train again.")
        self.model = sdseg_of(checkpoint, device, source=str(run.path))
        self.sample = sample_of(manifest, split, limit)
        self.device = device
        count = len(self.sample.numbers)
        self.label = f"{manifest.name}/{run.path.name}@{checkpoint.step}/{split}-{count}"
        self.parameterisation = self.model.config.parameterisation

    @cached_property
    def exact(self) -> tuple[Tensor, Tensor, dict[int, float]]:
        """float32's z0, mask and Dice per case."""
        answers = [self.predict(self.model, FLOAT32, chunk) for chunk in self._chunks()]
        z0, found = (torch.cat(parts) for parts in zip(*answers, strict=True))
        return z0, found, self._dice(found)

    def _chunks(self) -> list[range]:
        count, size = len(self.sample.numbers), CHUNK[self.device.type]
        return [range(i, min(i + size, count)) for i in range(0, count, size)]

    @torch.inference_mode()
    def predict(self, model: SDSeg, lowering: Lowering, chunk: range) -> tuple[Tensor, Tensor]:
        """From image to z0 (n,4,h,w) and mask (n,H,W), as `predict_planes`, each part as given."""
        pixels = self.sample.pixels[chunk.start : chunk.stop].to(self.device)
        image = as_three_channels(pixels).contiguous(memory_format=torch.channels_last)
        shape = model.latent_shape(*pixels.shape[-2:])
        numbers = self.sample.numbers[chunk.start : chunk.stop]
        zt = diffusion.seeded_noise(0, numbers, shape).to(self.device)
        with lowering.around("encoder"):
            zc = model.encode_image(image).float()
        with lowering.around("unet"):
            output = model.unet(zt, diffusion.LAST, zc)
        z0 = diffusion.read_output(output, zt, diffusion.LAST, self.parameterisation).z0_pred
        with lowering.around("decoder"):
            probability = shifted(model.probability(z0), model.threshold)
        return z0.cpu(), (probability > THRESHOLD).cpu()

    def _dice(self, found: Tensor) -> dict[int, float]:
        cases = np.array(self.sample.cases)
        reference = self.sample.reference.numpy()
        own = {c: cases == c for c in set(cases)}
        pairs = {c: MaskPair(found.numpy()[own[c]], reference[own[c]], None) for c in own}
        scores = {c: dice(pair) for c, pair in pairs.items()}
        return {int(c): score for c, score in scores.items() if score is not None}

    def measure(self, lowering: Lowering) -> Row:
        """One row of the table; a format the device cannot compute in is a result too."""
        model = with_float16_weights(self.model) if lowering.float16_weights else self.model
        try:
            answers = [self.predict(model, lowering, chunk) for chunk in self._chunks()]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as refusal:
            return {"unsupported": str(refusal).splitlines()[0]}
        z0, found = (torch.cat(parts) for parts in zip(*answers, strict=True))
        exact_z0, exact_found, exact_dice = self.exact
        error, scores = (z0 - exact_z0).abs(), self._dice(found)
        changes = [scores[c] - exact_dice[c] for c in exact_dice]
        finite = bool(error.isfinite().all())
        row: Row = {
            "z0_error_mean": error.mean().item() if finite else None,
            "z0_error_max": error.max().item() if finite else None,
            "z0_std": exact_z0.std().item(),
            "dice": float(np.mean(list(scores.values()))),
            "dice_change": float(np.mean(changes)),
            "dice_change_worst": max(changes, key=abs),
            "flipped_pixels": (found != exact_found).float().mean().item(),
        }
        return {**row, **self._speed(model, lowering)} if lowering.timed else row

    def _speed(self, model: SDSeg, lowering: Lowering) -> Row:
        """Chunk by chunk in turn with float32: other work on the machine slows both alike."""
        chunks = self._chunks()
        turns = [chunks[i % len(chunks)] for i in range(TIMINGS)]
        low: list[float] = []
        exact: list[float] = []
        for chunk in turns:
            low.append(seconds(partial(self.predict, model, lowering, chunk), self.device))
            exact.append(seconds(partial(self.predict, self.model, FLOAT32, chunk), self.device))
        count = sum(map(len, turns))
        return {
            "slices_per_s": count / sum(low),
            "float32_slices_per_s": count / sum(exact),
            "speed_over_float32": float(np.median(np.divide(exact, low))),
        }


def run_table(
    results: Results, run: Path | None, workspace: Path, split: str, limit: int, device: str
) -> None:
    """Measure what is missing in the results file, print the table and the fastest safe row."""
    found = find_run(workspace, run)
    manifest = Manifest.find(workspace, found.config().dataset)
    chosen = choose_device(device)
    comparison = Comparison(found, manifest, split, limit, chosen)
    prefix = f"precision/{comparison.label}"
    results.measure(f"{prefix}/machine", lambda: machine(chosen))
    rows = {
        lowering.name: results.measure(
            f"{prefix}/{lowering.name}",
            lambda lowering=lowering: comparison.measure(lowering),  # type: ignore[misc]
        )
        for lowering in (FLOAT32, *lowerings(chosen))
    }
    print(f"\n{comparison.label}, {comparison.parameterisation}\n\n{table(rows)}\n")
    safe = fastest_safe(rows)
    print(f"Fastest whose mean Dice differs by less than {SAFE} from float32's: {safe}")


def fastest_safe(rows: dict[str, Row]) -> str:
    """Name of the fastest timed row whose mean Dice differs from float32's by less than `SAFE`."""
    return max(
        (
            name
            for name, row in rows.items()
            if "speed_over_float32" in row and abs(row["dice_change"]) < SAFE
        ),
        key=lambda name: rows[name]["speed_over_float32"],
    )


COLUMNS = (
    ("z0 error, mean", "z0_error_mean", ".2g"),
    ("largest", "z0_error_max", ".2g"),
    ("Dice", "dice", ".4f"),
    ("Dice change", "dice_change", "+.5f"),
    ("worst case", "dice_change_worst", "+.5f"),
    ("pixels flipped", "flipped_pixels", ".2g"),
    ("slices/s", "slices_per_s", ".2f"),
    ("speed over float32", "speed_over_float32", ".2f"),
)


def table(rows: dict[str, Row]) -> str:
    """The rows as a markdown table; a dash where there is nothing to say."""
    lines = ["| lowered | format | " + " | ".join(head for head, _, _ in COLUMNS) + " |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for name, row in rows.items():
        values = [
            "-" if row.get(key) is None else format(row[key], style) for _, key, style in COLUMNS
        ]
        refused = row.get("unsupported") or row.get("error")
        if refused:
            values[0] = f"not computed: {refused}"
        lines.append("| " + " | ".join([*name.split("/"), *values]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing in the results file."""
    parser = command(__doc__, workspace=True)
    parser.add_argument("--run", type=Path, help="run folder; the newest finished if absent")
    parser.add_argument("--split", default="val")
    parser.add_argument("--slices", type=int, default=48)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    run_table(Results(args.out), args.run, args.workspace, args.split, args.slices, args.device)


if __name__ == "__main__":
    main()
