"""The networks SDSeg is compared with, behind the calls of SDSeg that training and prediction make.

image --unet--> logits of the mask, all in one step and without noise
"""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor, nn

from sdseg_cli.core.config import THRESHOLD, ModelConfig
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.networks import BASELINES, SDSEG
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.sdseg import SDSeg, build_sdseg, unfilled_sdseg


class Baseline(nn.Module):
    """A network of planes.

    Args:
        config: Names it, and its scale.
        unet: The network, under the name of SDSeg's, so that averages and checkpoints are alike.
            It answers (B,1,H,W), in training perhaps (B,K,1,H,W): its own answer first, then those
            of its lower levels, enlarged.
    """

    mask_decoder: MaskDecoder | None = None
    latent_scale = 1.0
    """There is no latent: this and the mask decoder are never used."""

    def __init__(self, config: ModelConfig, unet: nn.Module) -> None:
        super().__init__()
        self.config, self.unet, self.threshold = config, unet, THRESHOLD

    def trained_parts(self) -> tuple[nn.Module, ...]:
        """As those of SDSeg."""
        return (self.unet,)

    predicting_parts = trained_parts

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Empty."""
        return 0, 0, 0

    def logits(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> (B,K,1,H,W); K is 1 but for a network that is deeply supervised,
        in training.
        """
        answer: Tensor = self.unet(image)
        return answer if answer.ndim == 5 else answer[:, None]

    def probability(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> (B,H,W) float32 in [0,1]."""
        return self.logits(image)[:, 0, 0].float().sigmoid()


SliceModel = SDSeg | Baseline
"""What trains and predicts. Both have `config`, `unet`, the part whose average is kept,
`latent_scale`, `latent_shape`, `mask_decoder`, `threshold`, `trained_parts` and `predicting_parts`.
"""


def build_model(config: ModelConfig) -> SliceModel:
    """The model of these settings, with fresh weights.

    Raises:
        ConfigError: A package that the network needs is not installed.
    """
    return build_sdseg(config) if config.network == SDSEG else build_baseline(config)


def unfilled_model(config: ModelConfig) -> SliceModel:
    """As `build_model`, for weights that are about to be loaded by `load_strictly`."""
    return unfilled_sdseg(config) if config.network == SDSEG else build_baseline(config)


def build_baseline(config: ModelConfig) -> Baseline:
    """The network of `BASELINES` that `config.network` names, in the size `config.scale`.

    Raises:
        ConfigError: As `build_model`.
    """
    network = BASELINES[config.network]
    if absent := [name for name in network.needs if find_spec(name) is None]:
        raise ConfigError(
            f"{config.network} needs {' and '.join(absent)}.",
            f"pip install {' '.join(absent)}; or all at once: pip install 'sdseg-cli[baselines]'.",
        )
    from monai.networks import nets

    sizes = network.tiny if config.scale == "tiny" else network.sd
    make = getattr(nets, network.monai)
    return Baseline(config, make(spatial_dims=2, in_channels=3, out_channels=1, **sizes))
