"""Public weights: where they lie, and how they are downloaded.

Through huggingface_hub: resumable, and its settings hold. `HF_HUB_OFFLINE=1` forbids
the network, `HF_ENDPOINT` names a mirror of the hub.
"""

from __future__ import annotations

import logging
import shutil
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdseg_cli.core.errors import WeightsError
from sdseg_cli.core.progress import Progress
from sdseg_cli.metrics.lpips import BACKBONE, HEADS


def download(known: KnownWeights, folder: Path, progress: Progress) -> Path:
    """Get a known file.

    Args:
        known: What to get.
        folder: Where half a download waits for the next call; made if missing.
        progress: Told the bytes so far.

    Returns:
        The file of weights, below `folder` or in the hub's own cache.

    Raises:
        WeightsError: The network cannot be reached or may not be used; the message names the file
            to place by hand.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils.logging import set_verbosity

    set_verbosity(logging.CRITICAL)  # one error, ours, is enough
    reported = _reporting(progress, known.name)
    try:
        if known.repository:
            return Path(hf_hub_download(known.repository, known.file, tqdm_class=reported))
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        folder.mkdir(parents=True, exist_ok=True)
        whole = _resumed(known, folder, reported)
        return _unzipped(whole, known.file, folder) if known.zipped else whole
    except Exception as error:
        raise WeightsError(
            f"{known.name} could not be fetched from {known.place}: {_reason(error)}.",
            f"Get {known.file} there on another machine, then: "
            f"sdseg weights add {known.file} --name {known.name}",
        ) from error


def _resumed(known: KnownWeights, folder: Path, reported: type) -> Path:
    from huggingface_hub.file_download import http_get

    whole = folder / (f"{known.name}.zip" if known.zipped else known.file)
    if not whole.is_file():
        part = whole.with_suffix(".part")
        try:
            with part.open("ab") as file:
                http_get(known.url, file, resume_size=file.tell(), tqdm_class=reported)
        except Exception as error:
            # An empty part is no start, and one the server cannot go on from (416) never will be.
            if part.stat().st_size == 0 or "416" in str(error):
                shutil.rmtree(folder)
                with suppress(OSError):
                    folder.parent.rmdir()
            raise
        part.rename(whole)
    return whole


def _unzipped(archive: Path, name: str, folder: Path) -> Path:
    """The named file of the archive, wherever in it."""
    target = folder / f"{archive.stem}-{name}"
    try:
        with zipfile.ZipFile(archive) as opened:
            member = next(m for m in opened.namelist() if Path(m).name == name)
            with opened.open(member) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, StopIteration) as error:
        archive.unlink()  # the next call gets it anew
        raise ValueError(f"the archive holds no {name} or is damaged") from error
    return target


def _reporting(progress: Progress, name: str) -> type:
    """huggingface_hub's progress bar, silent, telling our callback instead."""
    from tqdm.auto import tqdm

    class Reporting(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": False})

        def display(self, *args: Any, **options: Any) -> None:
            progress(int(self.n), int(self.total or 0), f"fetching {name}")

    return Reporting


def _reason(error: Exception) -> str:
    """The first line of what the library says, without its own advice."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".")


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
