"""The loss of a training step. For SDSeg Eq. 3 of one batch; with `train.mask_loss_weight` the
mask of the estimate counts, too. For a baseline Dice and cross-entropy of its mask are all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

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
from sdseg_cli.model.interface import SliceModel, class_probabilities
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.pretrained import below
from sdseg_cli.model.sdseg import SDSeg, foreground_weight, has_latents
from sdseg_cli.model.tensor_files import load_strictly
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import StepInputs
from sdseg_cli.training.latents import MaskLatents, encode_masks


class Objective(nn.Module):
    """The loss of a model under a recipe, as one module: so DDP can wrap it.

    An SDSeg whose mask counts needs a mask decoder, on the same device (ValueError).
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
            self.mask_loss = DecodedMaskLoss(decoder, model)
        elif model.config.classes > 1 and not model.config.overlapping:
            model.background.requires_grad_(False)  # only the loss of the mask would teach it

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of what the loss is the sum of, in the log."""
        decoded = isinstance(self.mask_loss, DecodedMaskLoss)
        return self.model.loss_names + (("loss_mask",) if decoded else ())

    @property
    def decoder(self) -> MaskDecoder | None:
        """Decoder of masks in training and afterwards; None: the exact one."""
        return self.mask_loss.decoder if isinstance(self.mask_loss, DecodedMaskLoss) else None

    def with_latents(self, inputs: StepInputs, latents: MaskLatents) -> StepInputs:
        """The inputs with the moments of all masks; new ones are computed and kept."""
        if inputs.known.all() or not has_latents(self.model):
            return inputs
        new, classes = (~inputs.known).nonzero(as_tuple=True)
        computed = encode_masks(self.model, inputs.masks[new, classes])
        rows = [inputs.rows[i][k] for i, k in zip(new.tolist(), classes.tolist(), strict=True)]
        latents.write(rows, computed)
        plane = inputs.moments.shape[-2:]
        moments = inputs.moments.reshape(*inputs.known.shape, -1, *plane).clone()
        moments[new, classes] = computed
        return replace(inputs, moments=moments.flatten(1, 2))

    def weight(self, inputs: StepInputs) -> Tensor | None:
        """Where the latent loss looks harder, (B,1,h,w), of K classes (B,4K,h,w): each by its own
        mask. None where it looks alike everywhere.
        """
        if not self.recipe.foreground_weight or not has_latents(self.model):
            return None
        sizes, masks = self.model.config.autoencoder, inputs.masks.float()
        weight = foreground_weight(masks, sizes.factor, self.recipe.foreground_weight)
        several = masks.shape[1] > 1
        return weight.repeat_interleave(sizes.latent_channels, dim=1) if several else weight

    def forward(
        self, inputs: StepInputs, weight: Tensor | None, mean_weight: Tensor | None
    ) -> Tensor:
        """`loss_terms` of the model, as DDP calls it."""
        return self.model.loss_terms(inputs, self.recipe, self.mask_loss, weight, mean_weight)


class MaskLoss(nn.Module):
    """One minus Dice, a mean over the slices and the classes of the batch, and cross-entropy, a
    mean over the pixels.

    Of one class, and of classes that overlap, each class is by itself (binary cross-entropy); where
    classes exclude each other, they share a softmax with the background.
    """

    def __init__(self) -> None:
        super().__init__()
        from monai.losses import DiceLoss

        self.dice = DiceLoss(sigmoid=True, reduction="none")
        self.dice_of_shares = DiceLoss(reduction="none")
        self.cross_entropy = nn.BCEWithLogitsLoss()

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """(B,K,H,W) or (B,K+1,H,W) float32, as `interface.class_probabilities` reads them, and
        (B,K,H,W) bool -> both, (2,) float32.
        """
        truth, classes = masks.float(), masks.shape[1]
        if logits.shape[1] == classes:
            dice = self.dice(logits, truth).flatten(1)
            entropy = self.cross_entropy(logits, truth)
        else:
            dice = self.dice_of_shares(class_probabilities(logits, classes), truth).flatten(1)
            # Number of the class, from 1; 0 is the background.
            number = (
                masks * torch.arange(1, classes + 1, device=masks.device)[:, None, None]
            ).amax(1)
            entropy = nn.functional.cross_entropy(logits, number)
        if classes > 1:
            # The Dice of a class that is in no slice of the batch would only teach empty masks.
            present = masks.any(dim=(0, 2, 3))
            dice = dice * present / present.float().mean().clamp(min=1e-6)
        return torch.stack([dice.mean(), entropy])


class DecodedMaskLoss(nn.Module):
    """`MaskLoss` of a clean latent, through a decoder of the model's autoencoder that stays as it
    is.
    """

    def __init__(self, decoder: MaskDecoder, model: SDSeg) -> None:
        super().__init__()
        self.decoder = decoder.requires_grad_(False).eval()
        self._logits = partial(model.mask_logits, decoder=self.decoder)
        self.loss = MaskLoss()

    def forward(self, z0_pred: Tensor, masks: Tensor) -> Tensor:
        """Scaled (B,4K,h,w) and (B,K,H,W) bool -> the sum of both, a scalar."""
        total: Tensor = self.loss(self._logits(z0_pred), masks).sum()
        return total


def decoder_to_train_through(
    config: RunConfig, weights: Mapping[str, Tensor], run: RunDir, store: WeightStore
) -> MaskDecoder | None:
    """The fast decoder of a training whose masks count, None of any other. A run keeps the one it
    began with, whatever is distilled meanwhile. `weights` are the model's, with its autoencoder.

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
