"""Named sets of settings: what `--preset` offers. Standard library only, as `config.py`."""

from __future__ import annotations

from sdseg_cli.config import AutoencoderConfig, ModelConfig, RunConfig, TrainConfig, UNetConfig
from sdseg_cli.errors import ConfigError

_TINY = RunConfig(
    preset="tiny",
    model=ModelConfig(
        autoencoder=AutoencoderConfig(
            channels=8, channel_mult=(1, 2, 4, 12), blocks_per_level=1, norm_groups=8
        ),
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

PRESETS: dict[str, RunConfig] = {"tiny": _TINY, "sd": RunConfig(preset="sd")}
"""`tiny` trains on a laptop's CPU in minutes; `sd` is the paper's widths and recipe."""


def preset(name: str) -> RunConfig:
    """The named preset.

    Raises:
        ConfigError: There is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f'there is no preset "{name}".', f"Choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
