"""How far our networks are from the recorded outputs of the official code.

    python -m benchmarks.parity          # small and full widths, a few minutes

Prints the largest absolute difference of each output as a table.
"""

from __future__ import annotations

import torch

from sdseg_cli.model.pretrained import load_official
from tests.parity.fill import manifest, state_dict
from tests.parity.reference import Reference, differences, flipped_pixels


def measure(size: str) -> dict[str, str]:
    """Output -> largest difference, for "tiny" or "full"."""
    tensors, reference = state_dict(manifest(f"sdseg_{size}")), Reference(size)
    model = load_official(tensors, ema=False)
    found = {name: f"{value:.1e}" for name, value in differences(model, reference).items()}
    averaged = load_official(tensors)
    with torch.inference_mode():
        zc = reference.output["cond_latent"]
        ours = averaged.predict_noise(reference.input["noise"], 999, zc)
    found["eps_t999_ema"] = f"{reference.difference('eps_t999_ema', ours):.1e}"
    for name in ("latent", "z0"):
        flipped, on_the_edge = flipped_pixels(model, reference, name)
        found[f"mask_{name}"] = f"{flipped} pixels of {on_the_edge} allowed"
    return found


def main() -> None:
    """The table."""
    small, full = measure("tiny"), measure("full")
    print("| output | small | full |\n|---|---|---|")
    for name in small:
        print(f"| `{name}` | {small[name]} | {full[name]} |")


if __name__ == "__main__":
    main()
