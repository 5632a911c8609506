"""Named sets of settings, the choices of `--preset`. Standard library only, as `config.py`."""

from __future__ import annotations

from dataclasses import replace

from sdseg_cli.core.config import (
    BASELINES,
    SCALES,
    SDSEG,
    SDSEG_RECIPE,
    AutoencoderConfig,
    ModelConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
    UNetConfig,
    VisionConfig,
)
from sdseg_cli.core.errors import ConfigError

_TINY = RunConfig(
    preset="tiny",
    model=ModelConfig(
        autoencoder=AutoencoderConfig(
            channels=8, channel_mult=(1, 2, 4, 12), blocks_per_level=1, norm_groups=8
        ),
        vision=VisionConfig(widths=(48, 96), blocks=(2, 4)),
        condition_channels=32,
        unet=UNetConfig(
            model_channels=32,
            channel_mult=(1, 2, 4),
            blocks_per_level=1,
            attention_levels=(1, 2),
            heads=4,
            dropout=0.0,
        ),
        parameterisation="z0",
        encoder_dropout=0.0,
    ),
    train=TrainConfig(
        steps=1_800,
        batch_size=4,
        learning_rate=1e-3,
        warmup_steps=50,
        schedule="cosine",
        clip_norm=1.0,
        ema_decay=0.99,
        noise_loss_weight=0.0,
        latent_loss="l2",
        foreground_weight=20.0,
        foreground_fraction=0.75,
        timesteps="last",
        flips="h",
        validate_every=200,
        validation_slices=48,
        checkpoint_every=100,
    ),
)

# A checkpoint of it is 5.5 GB: where a step takes milliseconds, saving more often would cost most.
_SD = RunConfig(preset="sd", train=TrainConfig(checkpoint_every=5_000))


def _table6(name: str, *, fusion: str, train_encoder: bool, latent_loss_weight: float) -> RunConfig:
    """A row of the paper's ablation: `sd` but for three settings."""
    return replace(
        _SD,
        preset=name,
        model=replace(_SD.model, fusion=fusion, train_encoder=train_encoder),
        train=replace(_SD.train, latent_loss_weight=latent_loss_weight),
    )


PRESETS: dict[str, RunConfig] = {
    config.preset: config
    for config in (
        _TINY,
        _SD,
        _table6(
            "table6-baseline", fusion="cross-attention", train_encoder=False, latent_loss_weight=0.0
        ),
        _table6("table6-concat", fusion="concat", train_encoder=False, latent_loss_weight=0.0),
        _table6("table6-encoder", fusion="concat", train_encoder=True, latent_loss_weight=0.0),
        _table6("table6-full", fusion="concat", train_encoder=True, latent_loss_weight=1.0),
    )
}
"""`tiny` trains on a laptop's CPU in minutes; `sd` is the paper's widths and recipe; `table6-*` are
the rows of its ablation.
"""


def preset(name: str) -> RunConfig:
    """The named preset.

    Raises:
        ConfigError: There is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f'there is no preset "{name}".', f"Choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def for_network(config: RunConfig, network: str) -> RunConfig:
    """A preset for another network: the same data, batches, flips, steps, average and validation;
    a learning rate that suits it; and nothing that only SDSeg has.

    Args:
        config: The preset `tiny` or `sd`.
        network: Of `models`.

    Raises:
        ConfigError: There is no such network, or the preset is an ablation of SDSeg.
    """
    if network == SDSEG:
        return config
    if config.preset not in SCALES:
        raise ConfigError(
            f"preset {config.preset} is an ablation of SDSeg.",
            f"Take --preset {' or '.join(SCALES)} with --model {network}.",
        )
    model, tiny = ModelConfig(network=network, scale=config.preset), config.preset == "tiny"
    rate, unused = BASELINES[network].learning_rate, TrainConfig()
    recipe = replace(
        config.train,
        init="scratch",
        learning_rate=rate if tiny else rate / 3,
        warmup_steps=50 if tiny else 1_000,
        schedule="cosine",
        clip_norm=1.0,
        **{name: getattr(unused, name) for name in SDSEG_RECIPE},
    )
    return replace(config, model=model, train=recipe, sample=SampleConfig(noise="zero"))


CLASS_BALANCE = 0.5
"""At less, structures of a thousandth of the pixels are not found in the first minutes."""


def for_classes(config: RunConfig, classes: int, *, overlapping: bool) -> RunConfig:
    """Settings for several structures: small ones count for more at first, and the mask counts,
    where a fast decoder ships for it.

    Args:
        config: Of one class, as `for_network` gives it.
        classes: K; 1 changes nothing.
        overlapping: They may share pixels.
    """
    if classes == 1:
        return config
    model = replace(config.model, classes=classes, overlapping=overlapping)
    recipe = replace(config.train, class_balance=CLASS_BALANCE)
    if model.network == SDSEG and model.autoencoder == _TINY.model.autoencoder:
        recipe = replace(recipe, mask_loss_weight=1.0, shortcuts=True)
    return replace(config, model=model, train=recipe)
