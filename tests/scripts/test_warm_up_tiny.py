"""The script that warms up a vision encoder and a U-Net; it lies beside the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from sdseg_cli.core.presets import PRESETS
from sdseg_cli.model.pretrained import below
from sdseg_cli.model.sdseg import build_sdseg
from sdseg_cli.model.tensor_files import load_strictly, read_metadata, read_tensors


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples of 64x64 a step, two threads' worth of work in a second."""
    from scripts import warm_up_tiny

    monkeypatch.setattr(warm_up_tiny, "SMALL", (2, 64))
    monkeypatch.setattr(warm_up_tiny, "LARGE", (2, 64))


def _run(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> Path:
    from scripts import warm_up_tiny

    folder.mkdir(exist_ok=True)
    out = folder / "networks.safetensors"
    files = ["--state", str(folder / "state.pt"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["warm_up_tiny.py", *files, "--steps", "3", *options])
    warm_up_tiny.main()
    return out


@pytest.mark.slow
def test_the_script_resumes_and_writes_the_tiny_presets_networks_in_half_precision(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _run(monkeypatch, tmp_path / "whole", "--stop", "2")
    _run(monkeypatch, tmp_path / "parts", "--stop", "1")
    parts = _run(monkeypatch, tmp_path / "parts", "--stop", "2")
    one, two = read_tensors(whole), read_tensors(parts)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert {value.dtype for value in one.values()} == {torch.float16}
    model = build_sdseg(PRESETS["tiny"].model)
    for part in ("vision_encoder", "unet"):
        load_strictly(getattr(model, part), below(one, f"{part}."), source=part)
    made_by = "scripts/warm_up_tiny.py, seed 0, step 2 of 3, mask loss 1, 0.3 of the way"
    assert read_metadata(whole)["made_by"] == made_by
    with pytest.raises(SystemExit, match="of seed 0"):
        _run(monkeypatch, tmp_path / "parts", "--seed", "1")


@pytest.mark.slow
def test_what_it_writes_lies_between_the_start_and_the_end(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, far = {}, ("--stop", "2", "--lr", "1")  # in the first step only a zero layer moves
    for kept in (0.0, 0.5, 1.0):
        out = _run(monkeypatch, tmp_path / str(kept), *far, "--kept", str(kept))
        found[kept] = read_tensors(out)
    torch.manual_seed(0)  # the script's own seed
    name = "vision_encoder.patches.weight"
    start = build_sdseg(PRESETS["tiny"].model).vision_encoder.patches.weight.half()
    assert torch.equal(found[0.0][name], start) and not torch.equal(found[1.0][name], start)
    middle = (found[0.0][name].float() + found[1.0][name].float()) / 2
    torch.testing.assert_close(found[0.5][name].float(), middle, atol=1e-3, rtol=0)
    last = "unet.out.2.weight"  # zero at the start
    assert torch.equal(found[0.0][last], found[1.0][last]) and found[0.0][last].any()


def test_each_rule_has_its_own_last_layer() -> None:
    from scripts.warm_up_tiny import NAMES, Heads

    torch.manual_seed(0)
    heads = Heads(width=6, condition=5)
    trunk = torch.randn(2, 6, 3, 4)
    found = heads(trunk, torch.tensor([NAMES.index("dark"), NAMES.index("small")]))
    for sample, rule in enumerate(("dark", "small")):
        own = heads.of(rule)
        alone = torch.nn.functional.conv2d(
            trunk[sample : sample + 1], own["out.weight"], own["out.bias"]
        )
        torch.testing.assert_close(found[sample : sample + 1], alone)
