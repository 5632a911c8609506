from __future__ import annotations

import json
import math
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from sdseg_cli.core.errors import ConfigError, RunError, WeightsError
from sdseg_cli.core.findings import Finding
from sdseg_cli.core.presets import PRESETS, for_network
from sdseg_cli.inference.decoders import (
    DecoderCheck,
    choose_decoder,
    decoder_file,
    decoder_identity,
    find_mask_decoder,
    keep_with_run,
    read_check,
    stored_decoder,
)
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.mask_decoder import MaskDecoder, autoencoder_hash, build_mask_decoder
from sdseg_cli.model.tensor_files import read_tensors, write_tensors
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.package import networks_of, write_package
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training import calibration
from sdseg_cli.training.batches import evenly_spaced, open_split
from sdseg_cli.training.calibration import (
    adapted,
    calibrate,
    measure_run,
    work_in_validations,
)
from tests.conftest import Workspace, rated

SIZES = PRESETS["tiny"].model.autoencoder
CPU = torch.device("cpu")


@pytest.fixture
def run(tiny_run: Workspace, tmp_path: Path) -> RunDir:
    """A copy that may be changed, without what its training measured."""
    copy = RunDir(Path(shutil.copytree(tiny_run.run.path, tmp_path / "run")))
    decoder_file(copy.path).unlink(missing_ok=True)
    return copy


def constant(value: float) -> MaskDecoder:
    """Draws this logit everywhere."""
    decoder = build_mask_decoder(SIZES).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        decoder.leave.bias.fill_(value)
    return decoder


def check(step: int, difference: float = 0.0) -> DecoderCheck:
    return DecoderCheck(step, 4, 0.5, 0.5 + difference)


@pytest.mark.parametrize(
    ("difference", "harmless"), [(0.0, True), (0.0019, True), (-0.0019, True), (-0.0021, False)]
)
def test_a_difference_below_two_thousandths_is_harmless(difference: float, harmless: bool) -> None:
    found = check(1, difference)
    assert found.is_default is harmless
    assert found.difference == pytest.approx(difference)
    assert "trained_through" not in found.to_json()
    through = replace(check(1, 0.1), trained_through=True)
    assert through.is_default and through.to_json()["trained_through"] is True


def test_a_decoder_that_does_not_say_how_it_was_measured_is_refused(run: RunDir) -> None:
    write_tensors(constant(0.0).state_dict(), decoder_file(run.path))
    with pytest.raises(WeightsError, match="how it was measured"):
        read_check(run.path)
    decoder_file(run.path).write_bytes(b"no")
    with pytest.raises(WeightsError, match="damaged"):
        read_check(run.path)


@pytest.mark.parametrize(
    ("wanted", "older", "difference", "fast"),
    [
        ("auto", 0, 0.0, True),
        ("auto", 0, 0.01, False),
        ("auto", 1, 0.0, False),
        ("exact", 0, 0.0, False),
        ("fast", 0, 0.01, True),
    ],
)
def test_the_fast_decoder_is_the_default_where_these_weights_do_as_well_with_it(
    run: RunDir, tmp_path: Path, wanted: str, older: int, difference: float, fast: bool
) -> None:
    best = Checkpoint.load(run.best)
    networks = networks_of(best, CPU, source="run")
    keep_with_run(run, constant(1.5), check(best.step - older, difference))
    found = choose_decoder(wanted, run.path, best, networks, WeightStore(tmp_path / "store"))
    assert (found is not None) is fast
    if found is not None:
        assert float(found.leave.bias.detach()[0]) == 1.5


@pytest.mark.parametrize(
    ("wanted", "refusal"),
    [("quick", 'no decoder "quick"'), ("fast", "none for this model's autoencoder")],
)
def test_a_decoder_that_is_not_there_is_refused(
    run: RunDir, tmp_path: Path, wanted: str, refusal: str
) -> None:
    best = Checkpoint.load(run.best)
    networks = networks_of(best, CPU, source="run")
    torch.nn.init.ones_(networks.autoencoder.decoder.conv_in.bias)
    with pytest.raises(ConfigError, match=refusal):
        choose_decoder(wanted, run.path, best, networks, WeightStore(tmp_path))


def test_one_in_the_store_is_found_by_its_autoencoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    autoencoder, store = Autoencoder(SIZES), WeightStore(tmp_path)
    assert find_mask_decoder(autoencoder, SIZES, store) is None
    path = stored_decoder(store, autoencoder_hash(autoencoder))
    path.parent.mkdir()
    write_tensors(constant(2.0).state_dict(), path)
    found = find_mask_decoder(autoencoder, SIZES, store)
    assert found is not None
    assert float(found.leave.bias.detach()[0]) == 2.0


def test_the_tiny_autoencoders_own_ships(run: RunDir, tmp_path: Path) -> None:
    networks = networks_of(Checkpoint.load(run.best), CPU, source="run")
    found = find_mask_decoder(networks.autoencoder, SIZES, WeightStore(tmp_path))
    assert found is not None
    empty = torch.full((1, 3, 64, 64), -1.0)
    square = empty.clone()
    square[..., 16:48, 16:48] = 1
    for plane, voxels in ((empty, 0), (square, 32 * 32)):
        latent = networks.autoencoder.moments(plane).chunk(2, dim=1)[0]
        assert int((found(latent) > 0.5).sum()) == pytest.approx(voxels, rel=0.05)


def test_a_run_that_found_nothing_is_not_measured(run: RunDir, tmp_path: Path) -> None:
    rated(run, 0.0)
    assert measure_run(run, None, None, CPU, WeightStore(tmp_path)) is None
    assert read_check(run.path) is None


@pytest.mark.slow
def test_calibrating_a_run_keeps_what_predictions_then_read(
    run: RunDir, tiny_run: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = rated(run, 0.1)
    monkeypatch.setattr(calibration, "adapted", partial(adapted, steps=3))
    monkeypatch.setattr(calibration, "ADAPT_STEPS", 3)
    counts: list[tuple[int, int]] = []
    found = calibrate(
        run,
        tiny_run.manifest,
        device="cpu",
        store=WeightStore(tmp_path),
        on_warning=print,
        progress=lambda done, total, what: counts.append((done, total)),
    )
    assert found is not None and found.slices == 4
    assert read_check(run.path) == found
    networks = networks_of(best, CPU, source="run")
    shipped = find_mask_decoder(networks.autoencoder, SIZES, WeightStore(tmp_path))
    kept = read_tensors(decoder_file(run.path))
    assert shipped is not None
    assert not torch.equal(kept["leave.weight"], shipped.leave.weight), "it adapted to the run"
    # 4 slices, 3 steps, then twice 4 slices in batches of 2.
    assert [done for done, _ in counts] == [1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15]
    assert {total for _, total in counts} == {15}


@pytest.mark.slow
def test_measuring_compares_the_dice_of_both_decoders(
    run: RunDir, tiny_run: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = rated(run, 0.1)
    monkeypatch.setattr(calibration, "adapted", lambda decoder, *_, **__: decoder)
    monkeypatch.setattr(calibration, "own_latents", lambda *_: None)
    splits = [open_split(tiny_run.manifest, split) for split in ("train", "val")]
    found = measure_run(run, *splits, CPU, WeightStore(tmp_path), constant(9.0))
    assert found is not None
    # The single case: all of its 4 slices is found, so Dice is 2 n / (n + all).
    positions = evenly_spaced(splits[1], 4)
    n = int((splits[1].batch(positions).labels > 0).sum())
    assert (found.step, found.slices) == (best.step, 4)
    assert found.fast_dice == pytest.approx(2 * n / (n + 4 * math.prod(splits[1].plane)))
    assert found.exact_dice != found.fast_dice


@pytest.mark.slow
def test_a_run_keeps_the_decoder_it_was_trained_through_as_it_is(
    run: RunDir, tiny_run: Workspace, tmp_path: Path
) -> None:
    best = rated(run, 0.1)
    begun = constant(1.5)
    keep_with_run(run, begun, DecoderCheck(0, 0, 0.0, 0.0, trained_through=True))
    training, slices = open_split(tiny_run.manifest, "train"), open_split(tiny_run.manifest, "val")
    found = measure_run(run, training, slices, CPU, WeightStore(tmp_path), constant(-1.5))
    assert found is not None and found.trained_through and found.is_default
    assert (found.step, found.slices) == (best.step, 4)
    kept = read_tensors(decoder_file(run.path))
    assert all(torch.equal(kept[key], value) for key, value in begun.state_dict().items())


def test_a_package_takes_the_decoder_along(run: RunDir, tmp_path: Path) -> None:
    best = Checkpoint.load(run.best)
    keep_with_run(run, constant(1.5), check(best.step))
    folder = tmp_path / "package"
    write_package(best, folder, fast_decoder=decoder_file(run.path))
    assert read_check(folder) == check(best.step)
    write_package(best, folder)
    assert read_check(folder) is None


@pytest.mark.slow
def test_what_goes_wrong_while_measuring_is_a_warning_of_a_run_that_is_whole(
    run: RunDir, tiny_run: Workspace, tmp_path: Path
) -> None:
    best = rated(run, 0.1)
    store, told = WeightStore(tmp_path), []
    networks = networks_of(best, CPU, source="run")
    damaged = stored_decoder(store, autoencoder_hash(networks.autoencoder))
    damaged.parent.mkdir()
    damaged.write_bytes(b"no")
    found = calibrate(run, tiny_run.manifest, device="cpu", store=store, on_warning=told.append)
    assert found is None
    assert [one.code for one in told] == ["fast-decoder-unmeasured"]
    assert "damaged" in told[0].measured


def test_a_finished_run_that_is_called_again_is_not_measured_again(
    run: RunDir, tiny_run: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[object] = []

    def counted(*_: object, **__: object) -> DecoderCheck:
        measured.append(1)
        return check(9)

    monkeypatch.setattr(calibration, "measure_run", counted)
    again = partial(
        calibrate,
        run,
        tiny_run.manifest,
        device="cpu",
        store=WeightStore(tmp_path),
        on_warning=print,
    )
    assert again(anew=False) == check(9), "it had none yet"
    keep_with_run(run, constant(1.5), check(7))
    assert again(anew=False) == check(7)
    assert len(measured) == 1
    assert again(anew=True) == check(9)


def test_a_signal_skips_it_and_the_run_stays_whole(
    run: RunDir, tiny_run: Workspace, tmp_path: Path
) -> None:
    rated(run, 0.1)
    counts: list[tuple[int, int]] = []

    def interrupt(done: int, total: int, what: str) -> None:
        counts.append((done, total))
        assert run.is_locked(), "nobody trains or calibrates meanwhile"
        signal.raise_signal(signal.SIGINT)

    store, asked = WeightStore(tmp_path), []
    settings = {"device": "cpu", "store": store, "on_warning": print}
    ended = calibrate(
        run, tiny_run.manifest, **settings, progress=interrupt, on_stop=lambda: asked.append(1)
    )
    assert ended is None and asked == [1]
    assert counts == [(1, 4 + 200 + 2 * 4)], "4 slices to learn from in 200 steps, 4 to judge twice"
    assert read_check(run.path) is None
    assert not run.lock_file.exists()


def test_the_time_left_counts_a_calibration_in_validations() -> None:
    tiny = PRESETS["tiny"]
    measured = replace(tiny, train=replace(tiny.train, validation_slices=100))
    # 96 slices and 200 steps to learn, 100 slices twice to judge.
    assert work_in_validations(measured) == pytest.approx(
        (96 + 200 * calibration.STEP_COST + 200) / 100
    )
    through = replace(tiny, train=replace(tiny.train, mask_loss_weight=1.0))
    assert work_in_validations(through) == 2
    assert work_in_validations(for_network(tiny, "unet")) == 0, "it has no such decoder"


def test_what_decides_the_decoder_has_a_name_of_its_own(run: RunDir, tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    bare = decoder_identity("auto", run.path, store)
    keep_with_run(run, constant(1.5), check(1))
    kept = decoder_identity("auto", run.path, store)
    keep_with_run(run, constant(2.5), check(1))
    other, fast = (decoder_identity(asked, run.path, store) for asked in ("auto", "fast"))
    (tmp_path / "mask-decoders").mkdir()
    (tmp_path / "mask-decoders" / "one.safetensors").write_bytes(b"another")
    stored = decoder_identity("fast", run.path, store)
    assert len({bare, kept, other, fast, stored}) == 5
    assert decoder_identity("auto", run.path, store) == other
    assert decoder_identity("exact", run.path, store) == "exact"
    assert json.loads(json.dumps(check(1).to_json()))["difference"] == 0


def test_a_run_trained_through_its_decoder_needs_no_measuring_to_predict_with_it(
    run: RunDir, tiny_run: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RunError("the disk is full.", "Free some.")

    monkeypatch.setattr(calibration, "measure_run", fails)
    config = run.config_file.read_text()
    meant = config.replace("mask_loss_weight = 0.0", "mask_loss_weight = 1.0")
    assert meant != config
    run.config_file.write_text(meant)
    told: list[Finding] = []
    assert calibrate(run, tiny_run.manifest, device="cpu", on_warning=told.append) is None
    assert "will use the fast decoder (the disk is full.)" in told[0].measured
    assert "distill" not in told[0].fix


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (
            DecoderCheck(5, 4, 0.6005, 0.6156),
            "exact: the fast one only replaces it where both draw alike, within 0.002 of the Dice "
            "(validation Dice 0.6156 with the fast one and 0.6005 with the exact one)",
        ),
        (
            DecoderCheck(5, 4, 0.6005, 0.6001),
            "fast: as good as the exact one (validation Dice 0.6001 with the fast one and 0.6005 "
            "with the exact one)",
        ),
        (
            DecoderCheck(5, 4, 0.6156, 0.6005, trained_through=True),
            "fast: the run was trained through it (validation Dice 0.6005; with the exact one "
            "0.6156)",
        ),
        (
            DecoderCheck(0, 0, 0.0, 0.0, trained_through=True),
            "fast: the run was trained through it",
        ),
    ],
)
def test_the_choice_of_a_decoder_says_its_rule(check, said):
    assert check.choice == said
    assert check.choice.startswith("fast") == check.is_default
