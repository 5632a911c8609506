"""Where public weights lie. The first fetch records their sha256, of which only that of torchvision
is known before: the file's name tells how it begins.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdseg_cli.metrics.lpips import BACKBONE, HEADS


@dataclass(frozen=True)
class KnownWeights:
    """One public file of weights, on the Hugging Face hub or at an address of its own."""

    name: str
    what: str
    kind: str
    """As in `Source`."""
    file: str
    """The file to place by hand where the network is closed."""
    repository: str = ""
    """On the hub, with `file`."""
    url: str = ""
    """Of `file`, or of a zip file that holds it."""
    sha256_start: str = ""
    """How the sha256 begins, where its publisher says so."""

    @property
    def zipped(self) -> bool:
        """Whether `file` has to be unpacked."""
        return self.url.endswith(".zip")

    @property
    def place(self) -> str:
        """Where a person finds it."""
        return self.url or f"https://huggingface.co/{self.repository} ({self.file})"


KNOWN: dict[str, KnownWeights] = {
    known.name: known
    for known in (
        KnownWeights(
            name="kl-f8",
            what="the paper's autoencoder, also the start of the vision encoder",
            kind="autoencoder",
            file="model.ckpt",
            url="https://ommer-lab.com/files/latent-diffusion/kl-f8.zip",
        ),
        KnownWeights(
            name="ldm-8",
            what="unconditional latent diffusion on LSUN churches, the start of the U-Net",
            kind="ldm",
            file="model.ckpt",
            url="https://ommer-lab.com/files/latent-diffusion/lsun_churches.zip",
        ),
        KnownWeights(
            name="sd-vae-ft-mse",
            what="an autoencoder of the same architecture as kl-f8, fine-tuned by Stability AI",
            kind="autoencoder",
            file="diffusion_pytorch_model.safetensors",
            repository="stabilityai/sd-vae-ft-mse",
        ),
        KnownWeights(
            name=BACKBONE,
            what="torchvision's ImageNet AlexNet, whose features LPIPS compares",
            kind=BACKBONE,
            file="alexnet-owt-7be5be79.pth",
            url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            sha256_start="7be5be79",
        ),
        KnownWeights(
            name=HEADS,
            what="the linear heads of LPIPS v0.1 for AlexNet",
            kind=HEADS,
            file="alex.pth",
            url="https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/alex.pth",
        ),
    )
}
