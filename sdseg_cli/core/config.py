"""Every setting of a run: frozen dataclasses. `presets.py` names whole sets of values,
`config_file.py` reads and writes them.

Standard library only: the command line imports it for `--help`, and MONAI, whose networks SDSeg is
compared with, takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdseg_cli.core.errors import ConfigError

SDSEG = "sdseg"
SCALES = ("tiny", "sd")
"""Presets that the networks SDSeg is compared with have as well."""


@dataclass(frozen=True)
class Network:
    """A network SDSeg is compared with, from three channels of a plane to one logit per pixel."""

    source: str
    """Where its class is, "module:Class": MONAI's, or one of `model/peers`."""
    tiny: Mapping[str, Any]
    """Arguments for about as many weights and operations as SDSeg has in the preset `tiny`: 3.5
    million trained, 4.4 million that predict, 6.3 GFLOP per slice."""
    sd: Mapping[str, Any]
    """Arguments for the published width."""
    answers: tuple[str, ...] = ()
    """Its parts that give the logits, the last convolution of each."""
    learning_rate: float = 1e-3
    """In `tiny`; a third of it in `sd`."""
    start: str = "from scratch"
    """What its weights start from, for the record, and what they start from in the paper."""
    paper: str = ""
    """Who, when and where: the idea's source."""
    published: str = ""
    """Millions of weights of the authors' network as later papers' tables count them; empty where
    none are known."""
    needs: tuple[str, ...] = field(default=())
    """Packages it takes besides MONAI."""

    @property
    def code(self) -> str:
        """Whose code it is, and its licence."""
        monai = self.source.startswith("monai.")
        return "MONAI's, Apache-2.0" if monai else "own, from the paper, Apache-2.0"


def _dynunet(*filters: int, supervised: int) -> dict[str, Any]:
    """nnU-Net's network: a level per width, and so many lower levels that learn to answer too."""
    levels = len(filters)
    return {
        "filters": filters,
        "kernel_size": (3,) * levels,
        "strides": (1,) + (2,) * (levels - 1),
        "upsample_kernel_size": (2,) * (levels - 1),
        "norm_name": ("INSTANCE", {"affine": True}),
        "deep_supervision": True,
        "deep_supr_num": supervised,
    }


_MONAI, _PEERS = "monai.networks.nets:", "sdseg_cli.model.peers."

BASELINES: dict[str, Network] = {
    "unet": Network(
        _MONAI + "BasicUNet",
        tiny={"features": (16, 32, 64, 160, 384, 16)},
        sd={"features": (64, 128, 256, 512, 1024, 64)},
        answers=("final_conv",),
        paper="Ronneberger et al., 2015, arXiv 1505.04597",
    ),
    "unet-r50": Network(
        _MONAI + "FlexibleUNet",
        tiny={"backbone": "resnet50", "decoder_channels": (64, 32, 16, 16, 8)},
        sd={"backbone": "resnet50", "decoder_channels": (256, 128, 64, 32, 16)},
        answers=("segmentation_head",),
        start="from scratch, no ImageNet weights",
        paper="the encoder: He et al., 2015, arXiv 1512.03385",
    ),
    "swin-unetr": Network(
        _MONAI + "SwinUNETR",
        tiny={"feature_size": 24},
        sd={"feature_size": 48},
        answers=("out",),
        learning_rate=5e-4,
        needs=("einops",),
        paper="Hatamizadeh et al., 2022, arXiv 2201.01266",
    ),
    "dynunet": Network(
        _MONAI + "DynUNet",
        tiny=_dynunet(16, 32, 64, 128, 192, 224, supervised=3),
        sd=_dynunet(32, 64, 128, 256, 512, 512, 512, supervised=4),
        answers=("output_block", "deep_supervision_heads"),
        paper="nnU-Net: Isensee et al., 2018, arXiv 1809.10486",
    ),
    "segresnet": Network(
        _MONAI + "SegResNet",
        tiny={"init_filters": 16, "blocks_down": (1, 1, 1, 2, 2), "blocks_up": (1, 1, 1, 1)},
        sd={"init_filters": 32, "blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1)},
        answers=("conv_final",),
        paper="Myronenko, 2018, arXiv 1810.11654",
    ),
    "transunet": Network(
        _PEERS + "transunet:TransUNet",
        tiny={
            "stem": 16,
            "blocks": (1, 2, 3),
            "hidden": 192,
            "layers": 4,
            "heads": 6,
            "decoder": (128, 64, 32, 16, 16),
        },
        sd={
            "stem": 64,
            "blocks": (3, 4, 9),
            "hidden": 768,
            "layers": 12,
            "heads": 12,
            "decoder": (512, 256, 128, 64, 16),
        },
        answers=("head",),
        learning_rate=5e-4,
        start="from scratch, no ImageNet weights of the ResNet-50 and the ViT",
        paper="Chen et al., 2021, arXiv 2102.04306",
        published="105.3",
    ),
    "swinunet": Network(
        _PEERS + "swinunet:SwinUNet",
        tiny={"width": 32, "depths": (2, 2, 2, 2), "heads": (2, 4, 8, 16)},
        sd={"width": 96, "depths": (2, 2, 2, 2), "heads": (3, 6, 12, 24)},
        answers=("head",),
        learning_rate=5e-4,
        start="from scratch, no ImageNet weights of the Swin transformer",
        needs=("einops",),
        paper="Cao et al., 2021, arXiv 2105.05537",
        published="27.2",
    ),
    "ssformer": Network(
        _PEERS + "ssformer:SSFormer",
        tiny={
            "widths": (32, 64, 160, 256),
            "depths": (1, 1, 2, 1),
            "heads": (1, 2, 5, 8),
            "decoder": 64,
        },
        sd={
            "widths": (64, 128, 320, 512),
            "depths": (3, 8, 27, 3),
            "heads": (1, 2, 5, 8),
            "decoder": 256,
        },
        answers=("head",),
        learning_rate=5e-4,
        start="from scratch, no ImageNet weights of the Mix Transformer",
        paper="SSFormer-L: Wang et al., 2022, arXiv 2203.03635",
        published="66.2",
    ),
    "li-segpnet": Network(
        _PEERS + "li_segpnet:LiSegPNet",
        tiny={"widths": (16, 32, 64, 128, 256)},
        sd={"widths": (32, 64, 128, 256, 512)},
        answers=("head",),
        paper="Sharma et al., 2023, IEEE TBME 70(4)",
    ),
}
"""`--model` -> the network. To add one is to add its line here."""


def models() -> tuple[str, ...]:
    """The choices of `--model`."""
    return (SDSEG, *BASELINES)


def _choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        names = ", ".join(repr(a) for a in allowed)
        raise ConfigError(f'{key} is "{value}".', f"Choose one of {names}.")


ENDLESS = 1e18
"""In place of an upper bound; infinity itself is refused."""
MOST_LEVELS, WIDEST = 8, 2**16
"""Of a network; more would only be a slip of the hand."""
LEAST_SEED, SEEDS_END = -(2**63), 2**64
"""Seeds that torch accepts."""


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # so put, NaN is refused too
        wanted = f"{low:g} to {high:g}" if high < ENDLESS else f"{low:g} or more"
        raise ConfigError(f"{key} is {value:g}.", f"Give {wanted}.")


def _divisible(section: str, widths: list[int], by: int) -> None:
    if len(widths) > MOST_LEVELS or max(widths, default=0) > WIDEST:
        raise ConfigError(
            f"{section}: {len(widths)} widths, the largest {max(widths)}.",
            f"Give at most {MOST_LEVELS} levels, none wider than {WIDEST} channels.",
        )
    if not widths or by < 1 or any(width < 1 or width % by for width in widths):
        raise ConfigError(
            f"{section}: the widths {widths} are not all multiples of {by}.",
            f"Choose channels and channel_mult so that every product is a multiple of {by}.",
        )


MOST_CLASSES = 255
"""Of one run: as many as a label map of bytes holds."""
UNET_NORM_GROUPS = 32
"""Groups of the U-Net's norms, in every size of it."""
ABOVE_128 = ((0, 0), (129, 1))
"""How grey masks are read that hold no exact values: (lowest grey, label), ascending."""
NO_AUGMENTATION = "none"
THRESHOLD = 0.5
"""A voxel whose probability is above this is foreground."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the KL autoencoder; the defaults are kl-f8's."""

    channels: int = 128
    """Width of the highest resolution."""
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    """Width of each level over `channels`; one halving of the plane between levels."""
    blocks_per_level: int = 2
    """Residual blocks per level on the way down; one more on the way up."""
    latent_channels: int = 4
    """Channels of the latent."""
    norm_groups: int = 32
    """Groups of its norms."""

    def __post_init__(self) -> None:
        _within("model.autoencoder.blocks_per_level", self.blocks_per_level, 1, 16)
        _within("model.autoencoder.latent_channels", self.latent_channels, 1, 64)
        widths = [self.channels * m for m in self.channel_mult]
        _divisible("model.autoencoder", [self.channels, *widths], self.norm_groups)

    @property
    def factor(self) -> int:
        """Side of the plane over the side of the latent."""
        return int(2 ** (len(self.channel_mult) - 1))


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the denoiser; the defaults are the paper's (LDM-8)."""

    model_channels: int = 192
    """Width of the highest resolution."""
    channel_mult: tuple[int, ...] = (1, 2, 2, 4, 4)
    """Width of each level over `model_channels`."""
    blocks_per_level: int = 2
    """Residual blocks per level on the way down; one more on the way up."""
    attention_levels: tuple[int, ...] = (0, 1, 2, 3)
    """Levels with attention, 0 being the latent's own size."""
    heads: int = 8
    """Heads of each attention."""
    dropout: float = 0.2
    """Dropout of its residual blocks in training."""

    def __post_init__(self) -> None:
        _within("model.unet.blocks_per_level", self.blocks_per_level, 1, 16)
        _within("model.unet.dropout", self.dropout, 0, 0.99)
        widths = [self.model_channels * m for m in self.channel_mult]
        _divisible("model.unet", [self.model_channels, *widths], UNET_NORM_GROUPS)
        _divisible("model.unet", widths, self.heads)


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a vision encoder of its own; without widths it is the autoencoder's encoder (the
    paper).
    """

    widths: tuple[int, ...] = ()
    """Channels at each resolution, the last that of the latent; each half the one before."""
    blocks: tuple[int, ...] = ()
    """Blocks at each resolution."""

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.blocks):
            raise ConfigError(
                f"model.vision: {len(self.widths)} widths and {len(self.blocks)} blocks.",
                "Give as many numbers of blocks as widths.",
            )
        if not self.widths:
            return
        _divisible("model.vision", list(self.widths), 1)
        for count in self.blocks:
            _within("model.vision.blocks", count, 1, 16)


@dataclass(frozen=True)
class ModelConfig:
    """The three networks, how the image reaches the denoiser, and what that predicts."""

    network: str = SDSEG
    """"sdseg", or a network it is compared with, as `--model` names them."""
    scale: str = "own"
    """Size of such a network: "tiny" or "sd"; SDSeg has its own, in the sections below."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    condition_channels: int = 4
    """Channels in which the image reaches the U-Net; 4 in the paper."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    fusion: str = "concat"
    """How the U-Net sees the image's latent: "concat" (the paper) or "cross-attention"."""
    parameterisation: str = "eps"
    """What the U-Net's output means: "eps" (the paper), "v" or "z0"."""
    encoder_dropout: float = 0.2
    """Dropout of the vision encoder."""
    precision: str = "mixed"
    """On a GPU, of the vision encoder and the autoencoder: "mixed", bfloat16; "mixed-float16",
    with a loss scale in training; or "float32" (the paper). The U-Net and Eq. 2 are always
    float32."""
    tf32: bool = False
    """On a GPU all float32 products round their operands to TF32's 11 bits; Eq. 2 has none."""
    train_encoder: bool = True
    """False: the vision encoder stays as it starts, without dropout."""
    classes: int = 1
    """K, the structures of a run; set from the prepared set, each has a mask latent of its own."""
    overlapping: bool = False
    """Classes may share pixels (regions); else each pixel has one class at most."""

    def __post_init__(self) -> None:
        _choice("model.network", self.network, models())
        if (self.network == SDSEG) != (self.scale == "own"):
            raise ConfigError(
                f"model.network is {self.network} with model.scale {self.scale}.",
                f"Take --model {self.network}, which sets all that goes with it.",
            )
        _choice("model.scale", self.scale, ("own", *SCALES))
        _choice("model.fusion", self.fusion, ("concat", "cross-attention"))
        _choice("model.precision", self.precision, ("mixed", "mixed-float16", "float32"))
        _choice("model.parameterisation", self.parameterisation, ("eps", "v", "z0"))
        _within("model.encoder_dropout", self.encoder_dropout, 0, 0.99)
        _within("model.condition_channels", self.condition_channels, 1, 1024)
        if 2 ** len(self.vision.widths) > self.autoencoder.factor:
            raise ConfigError(
                f"model.vision.widths: {len(self.vision.widths)} resolutions, and the latent is a "
                f"{self.autoencoder.factor}th of the plane.",
                f"Give at most {self.autoencoder.factor.bit_length() - 1} widths.",
            )
        _within("model.classes", self.classes, 1, MOST_CLASSES)


@dataclass(frozen=True)
class TrainConfig:
    """The recipe; the defaults are the paper's."""

    init: str = "pretrained"
    """Where the weights start: "pretrained" (the paper; `tiny` has its own), "autoencoder",
    "scratch", a run, a package, or a name in the weight store."""
    steps: int = 100_000
    """Optimiser steps."""
    batch_size: int = 4
    """Slices per optimiser step, over all processes."""
    accumulate: int = 1
    """Parts a batch is computed in, one after the other: less memory, the same step."""
    learning_rate: float = 4e-5
    """Effective: the paper's base rate 1e-5 times batch 4 on one GPU."""
    warmup_steps: int = 10_000
    """Steps in which the learning rate rises from 0."""
    schedule: str = "constant"
    """After the warm-up: "constant" (the paper) or "cosine", down to a hundredth at the end."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 = no clipping (the paper)."""
    ema_decay: float = 0.9999
    """Decay of the averaged U-Net, which predicts."""
    noise_loss_weight: float = 1.0
    """Weight of L_noise in Eq. 3."""
    latent_loss_weight: float = 1.0
    """Lambda, the weight of L_latent in Eq. 3; 0 = branch off."""
    latent_loss: str = "l1"
    """L_latent: "l1", mean absolute (the paper), or "l2", mean squared error."""
    foreground_weight: float = 0.0
    """Latent loss: latent pixels on or beside the foreground weigh 1 + this; 0 = the paper."""
    mask_loss_weight: float = 0.0
    """Weight of Dice and cross-entropy, in pixels, of the mask that the fast decoder makes of the
    estimate; 0 = the paper."""
    shortcuts: bool = False
    """Where the mask counts and t is always 999: a mask that `augment` moved is not encoded, its
    pixels alone teach; and of the classes a slice lacks only the one most shown is decoded."""
    class_balance: float = 0.0
    """Of several classes, cross-entropy weighs a class by one over its share of the pixels to this
    power at first, and less and less in the first half of all steps; 0 = all pixels alike."""
    foreground_fraction: float = 0.0
    """Share of each batch drawn from slices with foreground; 0 = every slice once per epoch."""
    timesteps: str = "uniform"
    """How t is drawn: "uniform" on 0..999 (the paper); "latent-weighted", as often as Eq. 3 weighs
    it, and that weight divided out: the same mean loss with less noise; or "last", always 999."""
    flips: str = "hv"
    """Random flips: any of the letters h (left-right) and v (up-down)."""
    augment: str = "none"
    """Random rotations, scales, shifts and intensities: "none" (the paper), "light" or "strong";
    scans and photographs each have their own. `--show-augmentation` draws examples."""
    cutmix: float = 0.0
    """Probability that foreground of another slice of the batch is pasted into a slice; 0 = the
    paper."""
    validate_every: int = 2_500
    """Steps from one validation to the next."""
    validation_slices: int = 256
    """At most so many slices, spread evenly over the validation cases."""
    checkpoint_every: int = 1_000
    """Steps from one checkpoint to the next."""
    threshold: str = "half"
    """Above which probability a pixel is foreground: "half", 0.5 (the paper), or "validation":
    the one with the highest Dice in each validation; predictions are shifted so that it is 0.5."""
    patience: int = 0
    """Stop after so many validations without a better Dice; 0 = never."""

    def __post_init__(self) -> None:
        _choice("train.timesteps", self.timesteps, ("uniform", "latent-weighted", "last"))
        _choice("train.latent_loss", self.latent_loss, ("l1", "l2"))
        _choice("train.threshold", self.threshold, ("half", "validation"))
        _choice("train.schedule", self.schedule, ("constant", "cosine"))
        _choice("train.flips", self.flips, ("", "h", "v", "hv"))
        _choice("train.augment", self.augment, (NO_AUGMENTATION, "light", "strong"))
        counts = ("steps", "batch_size", "validate_every", "validation_slices", "checkpoint_every")
        for name in counts:
            _within(f"train.{name}", getattr(self, name), 1, ENDLESS)
        _within("train.accumulate", self.accumulate, 1, self.batch_size)
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"train.batch_size {self.batch_size} does not split into {self.accumulate} parts.",
                "Choose train.accumulate so that it divides the batch.",
            )
        losses = ("noise_loss_weight", "latent_loss_weight", "mask_loss_weight")
        others = ("foreground_weight", "weight_decay", "warmup_steps", "clip_norm", "patience")
        for name in (*losses, *others):
            _within(f"train.{name}", getattr(self, name), 0, ENDLESS)
        for name in ("foreground_fraction", "ema_decay", "class_balance", "cutmix"):
            _within(f"train.{name}", getattr(self, name), 0, 1)
        _within("train.learning_rate", self.learning_rate, 1e-12, 10)
        if not any(getattr(self, name) for name in losses):
            raise ConfigError("all loss weights are 0.", "Give one a weight.")
        if self.mask_loss_weight and self.timesteps == "latent-weighted":
            raise ConfigError(
                "train.mask_loss_weight does not go with train.timesteps=latent-weighted.",
                "That draw is of the other two terms: take last or uniform.",
            )

    @property
    def takes_shortcuts(self) -> bool:
        """`shortcuts`, where they are sound: pixels can teach, and z0 does not show in zt."""
        return self.shortcuts and bool(self.mask_loss_weight) and self.timesteps == "last"


@dataclass(frozen=True)
class SampleConfig:
    """Prediction; the defaults are the paper's."""

    steps: int = 1
    """Reverse steps: 1 = Eq. 2 from t = 999; more = DDIM."""
    eta: float = 0.0
    """Fresh noise between steps: 0 = none (deterministic), 1 = as much as ancestral sampling."""
    samples: int = 1
    """Noise draws per slice, whose probabilities are averaged."""
    noise: str = "slice"
    """"slice": each slice has its own noise; "shared": all have the same (the official code);
    "zero": none at all, which no training of SDSeg has seen, and all that a baseline has."""
    flips: str = ""
    """Flips whose probabilities are averaged with the plain slice's: any of the letters h
    (left-right) and v (up-down); with both, the two at once count as well."""

    def __post_init__(self) -> None:
        _within("sample.steps", self.steps, 1, 1000)
        _within("sample.eta", self.eta, 0, 1)
        _within("sample.samples", self.samples, 1, 1000)
        _choice("sample.noise", self.noise, ("slice", "shared", "zero"))
        _choice("sample.flips", self.flips, ("", "h", "v", "hv"))
        if self.noise == "zero" and (self.samples > 1 or self.eta > 0):
            raise ConfigError(
                f"without noise (sample.noise is zero), samples {self.samples} and eta "
                f"{self.eta:g} would change nothing.",
                "Leave them at 1 and 0, or let the noise be drawn.",
            )


SDSEG_RECIPE = (
    "noise_loss_weight",
    "latent_loss_weight",
    "latent_loss",
    "foreground_weight",
    "mask_loss_weight",
    "shortcuts",
    "timesteps",
)
"""Settings of `[train]` that mean nothing to another network."""
SEVERAL_CLASSES = ("classes", "overlapping")
"""Settings of `[model]` that stand in files only where there are several classes."""
LATER = {
    "model": ("vision", "condition_channels"),
    "train": ("class_balance", "shortcuts", "augment", "cutmix"),
}
"""Section -> settings that came later: they stand in files only where they are not at their
defaults, so that the rest is what older versions write and read.
"""
SDSEG_ALONE = {
    "model": (
        "autoencoder",
        "vision",
        "condition_channels",
        "unet",
        "fusion",
        "parameterisation",
        "encoder_dropout",
        "train_encoder",
    ),
    "train": SDSEG_RECIPE,
    "sample": ("steps", "eta", "samples", "noise"),
}
"""Section -> such settings; for another network they stay at their defaults, and no noise is
drawn.
"""


NO_FOLD = -1
"""`RunConfig.fold` of a run on the set's own split; it then stands in no file."""


@dataclass(frozen=True)
class RunConfig:
    """All settings of one training run."""

    dataset: str = ""
    """Prepared name, or path to a prepared folder."""
    preset: str = "tiny"
    """The named set of values that these began as."""
    seed: int = 0
    """Of all that is drawn: weights, slices, flips, t, noise, dropout."""
    fold: int = NO_FOLD
    """The fold that validates, from 0; the others train. -1: the set's own split."""
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        for key, text in (("dataset", self.dataset), ("train.init", self.train.init)):
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise ConfigError(
                    f"{key} {text!r} is not UTF-8, which files of settings have to be.",
                    "Rename the folder, or give a link to it that has another name.",
                )
        if not LEAST_SEED <= self.seed < SEEDS_END:
            raise ConfigError(f"seed is {self.seed}.", "Give a number of at most 63 bits.")
        if self.model.network == SDSEG:
            return
        plain = RunConfig(sample=SampleConfig(noise="zero"))
        unused = [
            f"{section}.{name}"
            for section, names in SDSEG_ALONE.items()
            for name in names
            if getattr(getattr(self, section), name) != getattr(getattr(plain, section), name)
        ]
        if unused:
            raise ConfigError(
                f"{self.model.network} does not use {', '.join(unused)}: SDSeg alone does.",
                f"Leave it out; --model {self.model.network} sets all that the network needs.",
            )
