"""Where public weights lie. Their sha256 is not known here: the first fetch records it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownWeights:
    """One public file of weights, on the Hugging Face hub or at an address of its own."""

    name: str
    what: str
    kind: str
    """"autoencoder" or "ldm"."""
    file: str
    """The file to place by hand where the network is closed."""
    repository: str = ""
    """On the hub, with `file`."""
    url: str = ""
    """Of a zip file that holds `file`."""

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
    )
}
