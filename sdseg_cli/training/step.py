"""One optimiser step and one validation of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sdseg_cli.core.config import THRESHOLD, RunConfig, SampleConfig, TrainConfig
from sdseg_cli.core.errors import ConfigError, RunError, WeightsError
from sdseg_cli.core.progress import no_op
from sdseg_cli.inference.engine import decoded_by, predict_planes, shifted
from sdseg_cli.model.baselines import build_model
from sdseg_cli.model.diffusion import seeded_generator
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.model.interface import SliceModel
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.runtime import Ema, needs_loss_scale, ran_out_of_memory, to_device
from sdseg_cli.model.sdseg import full_precision
from sdseg_cli.model.tensor_files import load_strictly
from sdseg_cli.runs.checkpoint import Checkpoint, config_values, restore_optimizer, to_float16
from sdseg_cli.training.batches import PreparedSlices, StepInputs, evenly_spaced
from sdseg_cli.training.latents import MaskLatents
from sdseg_cli.training.objective import Objective

SEED = 0
THRESHOLDS = tuple(percent / 100 for percent in range(10, 95, 5))
"""Tried with `train.threshold = "validation"`."""


@dataclass(frozen=True)
class StepResult:
    """The result of a step, perhaps still being computed by a GPU."""

    step: int
    """From 1."""
    positions: list[int]
    """The slices of this process."""
    rate: float
    values: Tensor
    """The loss, each of its terms, and how many processes are to stop."""
    terms: tuple[str, ...]
    """Names of the terms."""

    @property
    def stop_requested(self) -> bool:
        """True if any process is to stop; waits for the GPU."""
        return self.values[-1].item() > 0

    def row(self) -> dict[str, float]:
        """Its line of the log; waits for the GPU."""
        loss, *parts = self.values[:-1].tolist()
        named = dict(zip(self.terms, parts, strict=True))
        return {"step": self.step, "loss": loss, **named, "lr": self.rate}


class Trainer:
    """The state that a step changes: networks, average, optimiser, step number.

    Args:
        config: Every setting.
        state: Where to begin: step 0, or a resumed checkpoint.
        device: Where to compute.
        ranks: The processes that train together.
        compiled: Compile the networks that train: slow to start, then faster on a GPU.
        adapts: Where memory runs out, go on with batches in smaller parts.
        decoder: To train through, where the mask counts.

    Raises:
        ConfigError: The batch cannot be shared evenly.
        WeightsError: The state does not fit the configured networks.
    """

    def __init__(
        self,
        config: RunConfig,
        state: Checkpoint,
        device: torch.device,
        *,
        ranks: Ranks | None = None,
        compiled: bool = False,
        adapts: bool = False,
        decoder: MaskDecoder | None = None,
    ) -> None:
        self.config, self.device, self.ranks = config, device, ranks or Ranks()
        _require_even_shares(config.train, self.ranks)
        self.step, self.best, self.origin = state.step, dict(state.best), state.origin
        self.accumulate, self.adapts = config.train.accumulate, adapts
        self.model = build_model(config.model)
        load_strictly(self.model, state.weights, source="checkpoint")
        self.model.latent_scale = state.latent_scale
        to_device(self.model, device).train()
        self.ema = Ema(self.model.unet, config.train.ema_decay)
        load_strictly(self.ema.unet, state.ema, source="checkpoint (averaged U-Net)")
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        recipe = config.train
        self.optimizer = torch.optim.AdamW(
            self.trained,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=needs_loss_scale(device, config.model.precision)
        )
        if state.optimizer:
            restore_optimizer(self.optimizer, state.optimizer, source="checkpoint")
        if state.scaler:
            _restore_scaler(self.scaler, state.scaler)
        if compiled:
            for part in self.model.trained_parts():
                part.compile()
        decoder = None if decoder is None else decoder.to(device)
        self.objective = Objective(self.model, recipe, decoder)
        self._shared: Objective | DistributedDataParallel = self.objective
        if self.ranks.world > 1:
            self._shared = DistributedDataParallel(self.objective, gradient_as_bucket_view=True)

    def train_step(
        self, inputs: StepInputs, latents: MaskLatents, *, stop_requested: bool = False
    ) -> StepResult:
        """One optimiser step.

        Args:
            inputs: Of this step, this process's share; on the CPU.
            latents: Where the moments of masks are kept; what is not known yet is computed.
            stop_requested: This process is to stop; the result says so to all.
        """
        recipe = self.config.train
        generator = seeded_generator("dropout", self.config.seed, self.step, self.ranks.rank)
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        rate = learning_rate(recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        values = torch.zeros(2 + len(self.objective.terms), device=self.device)
        values[-1] = float(stop_requested)
        values[:-1] = self._gradients(inputs.to(self.device), latents)
        if recipe.clip_norm:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.trained, recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self.ema.update(self.model.unet, self.step)
        mean, terms = self.ranks.mean(values), self.objective.terms
        return StepResult(self.step, inputs.positions, rate, mean, terms)

    def _backward(self, inputs: StepInputs) -> Tensor:
        """Gradients of the whole batch, part by part; (1 + terms,): the loss and its terms, of this
        process's share.
        """
        weight = self.objective.weight(inputs)
        mean_weight = None if weight is None else self.ranks.mean(weight.mean()).clamp(min=1e-6)
        parts = inputs.parts(self.accumulate)
        weights = [None] * len(parts) if weight is None else weight.chunk(len(parts))
        total = torch.zeros(1 + len(self.objective.terms), device=self.device)
        for number, (part, here) in enumerate(zip(parts, weights, strict=True), start=1):
            with self._exchanging(number == len(parts)):
                terms = self._shared(part, here, mean_weight) / len(parts)
                self.scaler.scale(terms[0]).backward()
            total += terms.detach()
        return total

    def _exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once per batch, with its last part."""
        if isinstance(self._shared, DistributedDataParallel) and not last:
            return self._shared.no_sync()
        return nullcontext()

    def _gradients(self, inputs: StepInputs, latents: MaskLatents) -> Tensor:
        """As `_backward`, with the moments of all masks; where memory runs out, in smaller parts if
        that is allowed.

        Raises:
            RunError: Out of memory.
        """
        while True:
            try:
                with full_precision(tf32=self.model.config.tf32):
                    return self._backward(self.objective.with_latents(inputs, latents))
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
                self.optimizer.zero_grad(set_to_none=True)
                size = self.config.train.batch_size
                pieces = 2 * self.accumulate * self.ranks.world
                alone = self.ranks.world == 1  # others would wait for this one
                if not (self.adapts and alone) or size % pieces:
                    raise RunError(
                        f"out of memory at step {self.step + 1} with batch size {size}"
                        + (f" in {self.accumulate} parts." if self.accumulate > 1 else "."),
                        f"Try --batch-size {max(1, size // 2)} or auto; or the same steps in less "
                        f"memory: --set train.accumulate={2 * self.accumulate}.",
                    ) from error
            self.accumulate *= 2
            torch.cuda.empty_cache()

    def is_finite(self) -> bool:
        """True if all trained weights are finite."""
        return bool(torch.stack(torch._foreach_norm(list[Tensor](self.trained))).isfinite().all())

    def validate(self, slices: PreparedSlices, keep: Sequence[int] = ()) -> Validation:
        """The Dice of the averaged weights, on some fixed slices of the validation cases. `keep`
        are the positions, of those validated, whose probabilities are returned.
        """
        recipe = self.config.train
        positions = evenly_spaced(slices, recipe.validation_slices)
        at_once = max(1, recipe.batch_size // (self.ranks.world * self.accumulate))
        # Within the block alone: it is no part of a checkpoint.
        with self.ema.in_place_of(self.model), decoded_by(self.model, self.objective.decoder):
            return validation(
                self.model,
                slices,
                positions,
                keep,
                self.ranks,
                batch_size=at_once,
                thresholds=THRESHOLDS if recipe.threshold == "validation" else (THRESHOLD,),
            )

    def checkpoint(self, data: dict[str, Any], *, resumable: bool) -> Checkpoint:
        """The run as it stands: all of it to resume, or only what prediction needs."""
        state = Checkpoint(
            step=self.step,
            config=config_values(self.config),
            data=data,
            latent_scale=self.model.latent_scale,
            weights=self.model.state_dict(),
            ema=self.ema.unet.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            best=self.best,
            origin=self.origin,
        )
        if resumable:
            return state
        weights = to_float16(state.prediction_weights())
        return replace(state, weights=weights, ema={}, optimizer={}, scaler={})

    @property
    def exhausted(self) -> bool:
        """True if Dice has not risen for `train.patience` validations."""
        recipe = self.config.train
        if not recipe.patience or not self.best:
            return False
        waited: int = self.step - self.best["step"]
        return waited >= recipe.patience * recipe.validate_every


@dataclass(frozen=True, eq=False)
class Validation:
    """Scores of the averaged weights."""

    dice: float
    """Mean over the classes of their means over the cases."""
    planes: NDArray[np.float32]
    """(N,H,W) in [0,1], of several classes (N,K,H,W): the N slices of `keep`, in their order;
    shifted so that the threshold lies at 0.5."""
    threshold: float = THRESHOLD
    """Of those tried the one with the highest Dice; the nearest to 0.5 of several."""
    classes: tuple[float | None, ...] = ()
    """Mean over the cases of each class; None where no case has it."""
    union: float | None = None
    """Mean over the cases, of any class as one."""


def validation(
    model: SliceModel,
    slices: PreparedSlices,
    positions: Sequence[int],
    keep: Sequence[int],
    ranks: Ranks,
    *,
    batch_size: int,
    thresholds: Sequence[float] = (THRESHOLD,),
    on_batch: Callable[[int], None] = no_op,
) -> Validation:
    """Predict slices with one reverse step and one sample, whatever `[sample]` says.

    Args:
        model: In eval mode.
        slices: The validation slices.
        positions: Which of them are predicted; processes that train together share them.
        keep: Those of them whose probabilities are returned.
        ranks: The processes that train together.
        batch_size: Slices at a time.
        thresholds: To try: probabilities above which a pixel is foreground.
        on_batch: Called with the number of slices of each batch.
    """
    tried = sorted(thresholds, key=lambda one: abs(one - THRESHOLD))
    # Of each case, class (and any class, last) and threshold: pixels in both masks; the sum of
    # their sizes.
    counts = torch.zeros(slices.cases, 1 + len(slices.classes), len(tried), 2, dtype=torch.float64)
    kept: tuple[int, ...] = (len(keep), len(slices.classes), *slices.plane)
    planes = torch.zeros(kept if len(slices.classes) > 1 else (len(keep), *slices.plane))
    mine = positions[ranks.rank :: ranks.world]
    for start in range(0, len(mine), batch_size):
        chosen = mine[start : start + batch_size]
        batch = slices.batch(chosen)
        probability = predict_planes(model, batch.image, chosen, seed=SEED, sample=SampleConfig())
        truths = _with_union(slices.masks(batch.labels))
        known = slices.counts(chosen, batch.labels)
        for place, (position, one, truth) in enumerate(
            zip(chosen, probability, truths, strict=True)
        ):
            case = slices.places[position][0]
            for number, threshold in enumerate(tried):
                decided = torch.from_numpy(slices.classes.decide(one.numpy(), threshold))
                found = _with_union(decided[None])[0]
                if known is not None:
                    everywhere = torch.cat([known[place], known[place].all(dim=0, keepdim=True)])
                    found, truth = found & everywhere, truth & everywhere
                counts[case, :, number, 0] += (found & truth).sum(dim=(1, 2))
                counts[case, :, number, 1] += found.sum(dim=(1, 2)) + truth.sum(dim=(1, 2))
            if position in keep:
                planes[list(keep).index(position)] = one if len(slices.classes) > 1 else one[0]
        on_batch(len(chosen))
    if ranks.world > 1:
        device = next(model.parameters()).device
        counts = ranks.sum(counts.to(device)).cpu()
        planes = ranks.sum(planes.to(device)).cpu()  # each process has its own, zeros elsewhere
    each = [_class_dice(counts[:, :, number]) for number in range(len(tried))]
    dice = [_mean_dice(classes[:-1]) for classes in each]
    best = dice.index(max(dice))
    *classes, union = each[best]
    together = len(slices.classes) > 1 and not slices.classes.overlapping
    any_class = planes.sum(dim=1, keepdim=True) if together else None
    seen = shifted(planes, tried[best], any_class).numpy()
    return Validation(dice[best], seen, tried[best], tuple(classes), union)


def _with_union(masks: Tensor) -> Tensor:
    """(B,K,H,W) -> (B,K+1,H,W): any class, last."""
    return torch.cat([masks, masks.any(dim=1, keepdim=True)], dim=1)


def _class_dice(counts: Tensor) -> list[float | None]:
    """Of each class the mean over the cases with foreground in either mask; None without any.

    Args:
        counts: (cases,classes,2): pixels in both masks, and the sum of their sizes.
    """
    means: list[float | None] = []
    for of_class in counts.unbind(dim=1):
        overlap, both = of_class[of_class[:, 1] > 0].T
        means.append(float((2 * overlap / both).mean()) if len(both) else None)
    return means


def _mean_dice(classes: Sequence[float | None]) -> float:
    """Over the classes that there are; 0 if there are none."""
    known = [dice for dice in classes if dice is not None]
    return sum(known) / len(known) if known else 0.0


def _restore_scaler(scaler: torch.amp.GradScaler, state: Mapping[str, Any]) -> None:
    try:
        if not all(type(value) in (int, float) and value >= 0 for value in state.values()):
            raise ValueError("a value is no number")
        scaler.load_state_dict(dict(state))
    except (KeyError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"checkpoint: its loss scale cannot be read ({error}).", "Train anew in another folder."
        ) from error


def _require_even_shares(recipe: TrainConfig, ranks: Ranks) -> None:
    pieces = ranks.world * recipe.accumulate
    if recipe.batch_size % pieces:
        raise ConfigError(
            f"train.batch_size {recipe.batch_size} cannot be shared by {ranks.world} processes "
            f"in {recipe.accumulate} parts each.",
            f"Choose a batch that is a multiple of {pieces}, e.g. --set train.batch_size={pieces}.",
        )


def learning_rate(recipe: TrainConfig, step: int) -> float:
    """Linear warm-up, then constant or a cosine down to a hundredth. `step` counts from 0."""
    rate = recipe.learning_rate * min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    if recipe.schedule == "cosine":
        done = min(1.0, step / recipe.steps)
        rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))
    return rate
