"""Our model against recorded outputs of the official code: the largest difference of each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sdseg_cli.model import diffusion
from sdseg_cli.model.sdseg import SDSeg
from tests.parity.fill import HERE, inputs

TOLERANCE = 3e-5
Z0_TOLERANCE = 1.2e-3
"""38.66 times the above."""
PLANE = {"tiny": 128, "full": 256}


class Reference:
    """Inputs and recorded outputs of one size."""

    def __init__(self, size: str) -> None:
        with np.load(HERE / f"{size}_seed1.npz") as arrays:
            self.output = {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays}
        self.input = inputs(PLANE[size])

    def difference(self, name: str, ours: Tensor) -> float:
        """Largest absolute difference to the recorded output of that name."""
        recorded = self.output[name]
        assert ours.shape == recorded.shape
        return float((ours.double() - recorded.double()).abs().max())


@torch.inference_mode()
def differences(model: SDSeg, reference: Reference) -> dict[str, float]:
    """Largest difference of every output of the raw weights, but for the masks."""
    given, found = reference.input, {}
    noise, latent = given["noise"], given["latent"]

    def compare(name: str, ours: Tensor) -> Tensor:
        found[name] = reference.difference(name, ours)
        return ours

    zc = compare("cond_latent", model.encode_image(given["image"]))
    compare("mask_moments", model.mask_moments(given["mask"]))
    z0 = compare("mask_mode_scaled", model.encode_mask(given["mask"]))
    for t in (999, 500, 10):
        noise_pred = compare(f"eps_t{t}", model.predict_noise(noise, t, zc))
        if t == 999:
            compare("z0_t999", model.estimate_z0(noise, noise_pred, t))
    zt = compare("q_sample_t500", diffusion.add_noise(z0, noise, 500))
    loss_noise, loss_latent = diffusion.loss_terms(model.denoise(zt, 500, zc), noise, z0)
    compare("loss_t500", torch.stack([loss_noise + loss_latent, loss_noise, loss_latent]))
    for name, scaled in (("latent", latent), ("z0", reference.output["z0_t999"])):
        image = model.decode(scaled)
        compare(f"dec_{name}_sub4", image[..., ::4, ::4])
        wide = image.double()
        stats = [wide.mean(), wide.std(), wide.min(), wide.max()]
        compare_to = reference.output[f"dec_{name}_stats"][:4].double()
        found[f"dec_{name}_stats"] = float((torch.stack(stats) - compare_to).abs().max())
    return found


def over_tolerance(found: dict[str, float]) -> dict[str, float]:
    """The outputs that are further off than allowed."""
    allowed = {"z0_t999": Z0_TOLERANCE}
    return {k: v for k, v in found.items() if not v <= allowed.get(k, TOLERANCE)}


@torch.inference_mode()
def flipped_pixels(model: SDSeg, reference: Reference, name: str) -> tuple[int, int]:
    """Pixels in which our mask of `latent` or `z0` differs, and how many lie within 1e-4 of 0.5."""
    scaled = reference.input["latent"] if name == "latent" else reference.output["z0_t999"]
    ours = (model.probability(scaled)[0] > 0.5).numpy()
    bits = np.unpackbits(reference.output[f"mask_{name}_bits"].numpy())
    recorded = bits[: ours.size].reshape(ours.shape).astype(bool)
    assert recorded.sum() == int(reference.output[f"mask_{name}_sum"])
    return int((ours != recorded).sum()), int(reference.output[f"mask_{name}_margin"][2])
