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
from sdseg_cli.model.autoencoder import LOGVAR_RANGE, Autoencoder
from sdseg_cli.model.interface import MaskLossOf, SliceModel, class_probabilities
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.pretrained import below
from sdseg_cli.model.sdseg import SDSeg, foreground_weight, has_latents
from sdseg_cli.model.tensor_files import load_strictly
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import NOT_KEPT, StepInputs
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
            self.mask_loss = DecodedMaskLoss(decoder, model, shortcuts=recipe.takes_shortcuts)
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
        """The inputs with the moments of all masks; new ones are computed and kept. With
        `train.shortcuts` moved ones stay unknown, with moments whose z0 is 0.
        """
        if inputs.known.all() or not has_latents(self.model):
            return inputs
        missing, plane = ~inputs.known, inputs.moments.shape[-2:]
        moments = inputs.moments.reshape(*inputs.known.shape, -1, *plane).clone()
        if self.recipe.takes_shortcuts:
            left_out = missing & (torch.tensor(inputs.rows) == NOT_KEPT)
            missing = missing & ~left_out
            moments[left_out] = 0.0  # the mean, and without a spread that is z0, as in prediction
            moments[left_out, moments.shape[2] // 2 :] = LOGVAR_RANGE[0]
        if missing.any():
            new, classes = missing.nonzero(as_tuple=True)
            computed = encode_masks(self.model, inputs.masks[new, classes])
            rows = [inputs.rows[i][k] for i, k in zip(new.tolist(), classes.tolist(), strict=True)]
            latents.write(rows, computed)
            moments[new, classes] = computed
        return replace(inputs, moments=moments.flatten(1, 2), known=inputs.known | missing)

    def weight(self, inputs: StepInputs) -> Tensor | None:
        """Where the latent loss looks harder, (B,1,h,w), of K classes (B,4K,h,w): each by its own
        mask. 0 at latent pixels that touch an unknown one, and where a mask was not encoded. None
        where it looks alike everywhere.
        """
        strength, counts, shortcuts = (
            self.recipe.foreground_weight,
            inputs.counts,
            self.recipe.takes_shortcuts,
        )
        if not has_latents(self.model) or not (strength or counts is not None or shortcuts):
            return None
        sizes, masks = self.model.config.autoencoder, inputs.masks.float()
        weight = foreground_weight(masks, sizes.factor, strength)
        if counts is not None:
            unknown = nn.functional.max_pool2d((~counts).float(), sizes.factor)
            weight = weight * (1 - unknown)
        if shortcuts:
            weight = weight * inputs.known.to(weight.device)[:, :, None, None]
        several = masks.shape[1] > 1
        return weight.repeat_interleave(sizes.latent_channels, dim=1) if several else weight

    def forward(
        self, inputs: StepInputs, weight: Tensor | None, mean_weight: Tensor | None
    ) -> Tensor:
        """`loss_terms` of the model, as DDP calls it."""
        recipe = self.recipe
        mask_loss: MaskLossOf | None = self.mask_loss
        left = max(0.0, 1 - 2 * inputs.step / recipe.steps)
        if self.mask_loss is not None and recipe.class_balance * left:
            mask_loss = partial(self.mask_loss, balance=recipe.class_balance * left)
        return self.model.loss_terms(inputs, recipe, mask_loss, weight, mean_weight)


class MaskLoss(nn.Module):
    """One minus Dice, and cross-entropy, a mean over the pixels.

    Of one class Dice is a mean over the slices. Of several it is one of each class over the whole
    batch, a mean over the classes that the batch has: the Dice of an absent class would only teach
    empty masks, and a class that one slice of four has would count for a quarter. Where a batch is
    computed in parts (`train.accumulate`) or by several processes, it is that of each part, and the
    step uses their mean: Dice over the whole batch would take a second pass through all parts.

    One class, and each of classes that overlap, is by itself (binary cross-entropy); where classes
    exclude each other, they share a softmax with the background. Where the truth of a class is
    unknown, its pixels are left out of Dice; in the cross-entropy background and all unknown
    classes are then one: the truth is one of them, and which is not taught.
    """

    SMOOTH = 1e-5

    def __init__(self) -> None:
        super().__init__()
        from monai.losses import DiceLoss

        self.dice = DiceLoss(sigmoid=True, reduction="none")
        self.cross_entropy = nn.BCEWithLogitsLoss()

    def forward(
        self, logits: Tensor, masks: Tensor, counts: Tensor | None = None, *, balance: float = 0.0
    ) -> Tensor:
        """Both terms.

        Args:
            logits: (B,K,H,W) or (B,K+1,H,W) float32, as `interface.class_probabilities` reads them.
            masks: (B,K,H,W) bool.
            counts: (B,K,H,W) bool, where they are known; None: everywhere.
            balance: In the cross-entropy of several classes, power of one over the share of the
                pixels, by which pixels of a class weigh; the weights' mean is 1.

        Returns:
            (2,) float32.
        """
        classes = masks.shape[1]
        if classes == 1 and counts is None:
            truth = masks.float()
            dice = self.dice(logits, truth).mean()
            return torch.stack([dice, self.cross_entropy(logits, truth)])
        dice = self._batch_dice(class_probabilities(logits, classes), masks, counts)
        alone = logits.shape[1] == classes
        entropy = _each_cross_entropy if alone else _shared_cross_entropy
        return torch.stack([dice, entropy(logits, masks, counts, balance)])

    def _batch_dice(self, shares: Tensor, masks: Tensor, counts: Tensor | None) -> Tensor:
        """One minus the mean Dice of the classes that the batch has; 0 where it has none."""
        if counts is not None:
            shares, masks = shares * counts, masks & counts
        each = (0, 2, 3)
        both = shares.sum(each) + masks.sum(each)
        dice = 1 - (2 * (shares * masks).sum(each) + self.SMOOTH) / (both + self.SMOOTH)
        present = masks.any(dim=3).any(dim=2).any(dim=0)
        return (dice * present).sum() / present.sum().clamp(min=1)


def _each_cross_entropy(
    logits: Tensor, masks: Tensor, counts: Tensor | None, balance: float
) -> Tensor:
    """Of each class by itself, (B,K,H,W): a mean over what is known."""
    entropy = nn.functional.binary_cross_entropy_with_logits(
        logits, masks.float(), reduction="none"
    )
    if counts is None and not balance:
        return entropy.mean()
    weight = torch.ones_like(entropy) if counts is None else counts.float()
    if balance:
        share = (weight * masks).mean(dim=(0, 2, 3), keepdim=True)
        here, elsewhere = _weights(torch.cat([share, 1 - share]), balance)
        weight = weight * torch.where(masks, here, elsewhere)
    return (entropy * weight).sum() / weight.sum().clamp(min=1)


def _shared_cross_entropy(
    logits: Tensor, masks: Tensor, counts: Tensor | None, balance: float
) -> Tensor:
    """Of classes and background, (B,K+1,H,W), of which one is true: a mean over the pixels of which
    anything is known.
    """
    # Number of the class, from 1; 0 is the background.
    numbers = torch.arange(1, masks.shape[1] + 1, device=masks.device)[:, None, None]
    if counts is None:
        true = (masks * numbers).amax(dim=1)
        if not balance:
            return nn.functional.cross_entropy(logits, true)
        known = torch.ones_like(true, dtype=torch.bool)
    else:
        unknown = torch.cat([torch.ones_like(counts[:, :1]), ~counts], dim=1)
        lowest = torch.finfo(logits.dtype).min
        # No class, or one that was not drawn: their probabilities add up.
        background = logits.masked_fill(~unknown, lowest).logsumexp(dim=1, keepdim=True)
        logits = torch.cat([background, logits[:, 1:].masked_fill(~counts, lowest)], dim=1)
        true, known = (masks * counts * numbers).amax(dim=1), counts.any(dim=1)
    entropy = nn.functional.cross_entropy(logits, true, reduction="none")
    if not balance:
        return entropy.sum() / known.sum().clamp(min=1)
    share = torch.bincount(true[known], minlength=logits.shape[1]) / known.sum().clamp(min=1)
    weight = _weights(share, balance)[true] * known
    return (entropy * weight).sum() / weight.sum().clamp(min=1)


def _weights(share: Tensor, balance: float) -> Tensor:
    """Of pixels by the share of those like them: one over it to the power of `balance`."""
    return share.clamp(min=torch.finfo(share.dtype).tiny).pow(-balance) * (share > 0)


class DecodedMaskLoss(nn.Module):
    """`MaskLoss` of a clean latent, through a decoder of the model's autoencoder that stays as it
    is. With `shortcuts` it decodes of the classes that a slice lacks only one.
    """

    def __init__(self, decoder: MaskDecoder, model: SDSeg, *, shortcuts: bool = False) -> None:
        super().__init__()
        self.chooses = shortcuts and model.config.classes > 1
        self.decoder = decoder.requires_grad_(False).eval()
        if model.config.classes > 1:
            # A quarter faster on a CPU; one class keeps the order, and bits, of earlier versions.
            self.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._logits = partial(model.mask_logits, decoder=self.decoder)
        self.loss = MaskLoss()

    def forward(
        self,
        z0_pred: Tensor,
        masks: Tensor,
        counts: Tensor | None = None,
        *,
        balance: float = 0.0,
    ) -> Tensor:
        """Scaled (B,4K,h,w), and masks as `MaskLoss` takes them -> the sum of both, a scalar."""
        chosen = _worth_decoding(z0_pred, masks, counts) if self.chooses else None
        logits = self._logits(z0_pred, chosen=chosen)
        total: Tensor = self.loss(logits, masks, counts, balance=balance).sum()
        return total


def _worth_decoding(z0_pred: Tensor, masks: Tensor, counts: Tensor | None) -> Tensor:
    """Classes whose pixels teach much, (B,K) bool: those a slice has, those never drawn in its
    case, and of the others the one that the estimate shows most: an empty mask's latent is flat.
    """
    wanted = masks.flatten(2).any(dim=2)
    if counts is not None:
        wanted = wanted | ~counts.flatten(2).any(dim=2)
    each = z0_pred.detach().reshape(*wanted.shape, -1, z0_pred[0, 0].numel())
    shown = each.var(dim=3).sum(dim=2).masked_fill(wanted, -1)
    return wanted.scatter(1, shown.argmax(dim=1, keepdim=True), True)


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
