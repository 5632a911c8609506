"""What a training step minimises. For SDSeg Eq. 3 of one batch; with `train.mask_loss_weight` the
mask of the estimate counts, too. For a baseline Dice and cross-entropy of its mask are all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from sdseg_cli.core.config import RunConfig, TrainConfig
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.inference.decoders import (
    DecoderCheck,
    find_mask_decoder,
    keep_with_run,
    kept_for_training,
    read_check,
)
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.interface import SliceModel
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.pretrained import below
from sdseg_cli.model.sdseg import foreground_weight, has_latents
from sdseg_cli.model.tensor_files import load_strictly
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import StepInputs
from sdseg_cli.training.latents import MaskLatents, encode_masks


class Objective(nn.Module):
    """The loss of a model under a recipe, as one module: so DDP can wrap it.

    Args:
        model: On the device that computes.
        recipe: Weights of the terms.
        decoder: Of an SDSeg whose mask counts, on the same device.

    Raises:
        ValueError: The mask of an SDSeg counts, and there is no decoder.
    """

    def __init__(
        self, model: SliceModel, recipe: TrainConfig, decoder: MaskDecoder | None = None
    ) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.mask_loss: DecodedMaskLoss | MaskLoss | None = None
        if not has_latents(model):
            self.mask_loss = MaskLoss()
        elif recipe.mask_loss_weight:
            if decoder is None:
                raise ValueError("a loss of the mask needs a decoder")
            self.mask_loss = DecodedMaskLoss(decoder, model.latent_scale)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of what the loss is the sum of, in the log."""
        decoded = isinstance(self.mask_loss, DecodedMaskLoss)
        return self.model.loss_names + (("loss_mask",) if decoded else ())

    @property
    def decoder(self) -> MaskDecoder | None:
        """What masks are decoded by in training, and are to be afterwards; None: the exact one."""
        return self.mask_loss.decoder if isinstance(self.mask_loss, DecodedMaskLoss) else None

    def with_latents(self, inputs: StepInputs, latents: MaskLatents) -> StepInputs:
        """The inputs with the moments of all masks; new ones are computed and kept."""
        new = [i for i, with_latents in enumerate(inputs.known.tolist()) if not with_latents]
        if not new or not has_latents(self.model):
            return inputs
        computed = encode_masks(self.model, inputs.foreground[new])
        latents.write([inputs.rows[i] for i in new], computed)
        moments = inputs.moments.clone()
        moments[new] = computed
        return replace(inputs, moments=moments)

    def weight(self, inputs: StepInputs) -> Tensor | None:
        """Where the latent loss looks harder, (B,1,h,w); None where it looks alike everywhere."""
        if not self.recipe.foreground_weight or not has_latents(self.model):
            return None
        foreground = inputs.foreground[:, None].float()
        factor = self.model.config.autoencoder.factor
        return foreground_weight(foreground, factor, self.recipe.foreground_weight)

    def forward(
        self, inputs: StepInputs, weight: Tensor | None, mean_weight: Tensor | None
    ) -> Tensor:
        """`loss_terms` of the model, as DDP calls it."""
        return self.model.loss_terms(inputs, self.recipe, self.mask_loss, weight, mean_weight)


class MaskLoss(nn.Module):
    """One minus Dice, a mean over the slices, and binary cross-entropy, a mean over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        from monai.losses import DiceLoss

        self.dice = DiceLoss(sigmoid=True)
        self.cross_entropy = nn.BCEWithLogitsLoss()

    def forward(self, logits: Tensor, foreground: Tensor) -> Tensor:
        """(B,1,H,W) float32 and (B,H,W) bool -> both, (2,) float32."""
        truth = foreground[:, None].float()
        return torch.stack([self.dice(logits, truth), self.cross_entropy(logits, truth)])


class DecodedMaskLoss(nn.Module):
    """`MaskLoss` of a clean latent, through a decoder that stays as it is.

    Args:
        decoder: Of the model's autoencoder.
        latent_scale: The model's.
    """

    def __init__(self, decoder: MaskDecoder, latent_scale: float) -> None:
        super().__init__()
        self.decoder, self.latent_scale = decoder.requires_grad_(False).eval(), latent_scale
        self.loss = MaskLoss()

    def forward(self, z0_pred: Tensor, foreground: Tensor) -> Tensor:
        """Scaled (B,4,h,w) and (B,H,W) bool -> the sum of both, a scalar."""
        logits = self.decoder.logits(z0_pred / self.latent_scale)[:, None].float()
        total: Tensor = self.loss(logits, foreground).sum()
        return total


def decoder_to_train_through(
    config: RunConfig, weights: Mapping[str, Tensor], run: RunDir, store: WeightStore
) -> MaskDecoder | None:
    """The fast decoder of a training whose masks count, None of any other. A run keeps the one it
    began with, whatever is distilled meanwhile.

    Args:
        config: Every setting.
        weights: Of the model, with its autoencoder.
        run: Where the training goes on, if it began before.
        store: Where mask decoders are.

    Raises:
        ConfigError: Its autoencoder has no fast decoder.
        WeightsError: A file is damaged.
    """
    if not config.train.mask_loss_weight:
        return None
    sizes = config.model.autoencoder
    if (kept := kept_for_training(run, sizes)) is not None:
        return kept
    autoencoder = Autoencoder(sizes)
    load_strictly(autoencoder, below(weights, "autoencoder."), source="checkpoint")
    found = find_mask_decoder(autoencoder, sizes, store)
    if found is None:
        raise ConfigError(
            "train.mask_loss_weight: this autoencoder has no fast decoder to train through.",
            "`sdseg distill` makes one, from any run with the same autoencoder.",
        )
    return found


def keep_for_training(run: RunDir, decoder: MaskDecoder) -> None:
    """Let the run keep the decoder it is trained through; once.

    Raises:
        RunError: The disk refused.
    """
    check = read_check(run.path)
    if check is None or not check.trained_through:
        keep_with_run(run, decoder, DecoderCheck(0, 0, 0.0, 0.0, trained_through=True))
