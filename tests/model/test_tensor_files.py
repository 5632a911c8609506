from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdseg_cli.core.errors import WeightsError
from sdseg_cli.model.tensor_files import (
    check_tensors,
    load_strictly,
    read_tensors,
    state_dict_of,
    write_tensors,
)


@pytest.fixture
def layer() -> torch.nn.Linear:
    return torch.nn.Linear(2, 2)


def test_missing_unexpected_and_misshapen_keys_are_named(layer: torch.nn.Linear) -> None:
    before = layer.weight.clone()
    with pytest.raises(WeightsError, match=r"missing bias; unexpected more; weight is \(3, 3\)"):
        load_strictly(layer, {"weight": torch.ones(3, 3), "more": torch.ones(1)}, source="x")
    assert torch.equal(layer.weight, before)


def test_values_that_are_not_finite_are_refused(layer: torch.nn.Linear) -> None:
    bad = {"weight": torch.full((2, 2), float("nan")), "bias": torch.zeros(2)}
    with pytest.raises(WeightsError, match="weight holds NaN"):
        load_strictly(layer, bad, source="x")


def test_half_precision_files_load_as_float32(layer: torch.nn.Linear) -> None:
    load_strictly(layer, {"weight": torch.ones(2, 2).half(), "bias": torch.zeros(2)}, source="x")
    assert layer.weight.dtype == torch.float32
    assert layer.weight.tolist() == [[1, 1], [1, 1]]


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("harm-was-done"),)  # type: ignore[return-value]


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps({"state_dict": _Harmful()}, protocol=2))
    with pytest.raises(WeightsError):
        read_tensors(tmp_path / "bad.ckpt")
    assert not (tmp_path / "harm-was-done").exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.ckpt"])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("ckpt"):
        torch.save({"a": torch.zeros(1000)}, path)
    else:
        save_file({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(WeightsError, match="damaged"):
        read_tensors(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.safetensors: no such file"):
        read_tensors(tmp_path / "nowhere.safetensors")


def test_lightnings_callback_classes_in_a_checkpoint_are_read_past(tmp_path: Path) -> None:
    """Written as Lightning 1.x did: a dictionary keyed by the class itself."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    written = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = written  # type: ignore[attr-defined]
    path = tmp_path / "model.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
            patch.setitem(sys.modules, name, module)
        torch.save(
            {"state_dict": {"w": torch.ones(2)}, "callbacks": {written: {"best": 0.5}}}, path
        )
    assert "pytorch_lightning" not in sys.modules
    assert read_tensors(path)["w"].tolist() == [1, 1]


def test_a_dictionary_of_other_things_is_no_state_dict() -> None:
    with pytest.raises(WeightsError, match="x: epoch is no tensor"):
        state_dict_of({"epoch": 3}, source="x")
    with pytest.raises(WeightsError, match="x: holds no state_dict"):
        state_dict_of([torch.ones(1)], source="x")


def test_only_the_first_three_problems_are_spelled_out() -> None:
    wanted = {name: torch.Size([1]) for name in "abcde"}
    with pytest.raises(WeightsError, match="missing a; missing b; missing c; and 2 more"):
        check_tensors({}, wanted, source="x")


def test_a_written_file_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_tensors({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644
    assert read_tensors(tmp_path / "a.safetensors")["a"].tolist() == [1]


def test_a_module_of_shapes_only_gets_the_tensors_as_its_own() -> None:
    with torch.device("meta"):
        bare = torch.nn.Linear(2, 2).requires_grad_(False)
    tensors = {"weight": torch.full((2, 2), 3.0, dtype=torch.float16), "bias": torch.ones(2)}
    load_strictly(bare, tensors, source="x")
    assert bare(torch.ones(1, 2)).tolist() == [[7.0, 7.0]]
    assert bare.weight.dtype == torch.float32
    assert not bare.weight.requires_grad


class _OwnKind(torch.Tensor):
    """A tensor of somebody's class."""


WEIGHT = torch.eye(2)
STRANGE = {
    "a shape without values": lambda: WEIGHT.to("meta"),
    "sparse_coo": lambda: WEIGHT.to_sparse(),
    "sparse_csr": lambda: WEIGHT.to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(2)]),
    "quantised": lambda: torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8),
    "of float8_e4m3fn": lambda: WEIGHT.to(torch.float8_e4m3fn),
    "of float8_e5m2": lambda: WEIGHT.to(torch.float8_e5m2),
    "of complex64": lambda: WEIGHT.to(torch.complex64),
    "of uint16": lambda: WEIGHT.to(torch.uint16),
    "larger than its memory": lambda: torch.ones(1).expand(2, 2),
    "a _OwnKind": lambda: WEIGHT.as_subclass(_OwnKind),
    "a UninitializedParameter": lambda: torch.nn.UninitializedParameter(),
    "int64, not floating point": lambda: WEIGHT.long(),
    "bool, not floating point": lambda: WEIGHT.bool(),
    "NaN or infinity": lambda: WEIGHT.double() * 1e300,
    r"\(0, 2\), not \(2, 2\)": lambda: torch.ones(0, 2),
}


@pytest.mark.filterwarnings("ignore")  # several kinds are experiments of torch
@pytest.mark.parametrize("what", STRANGE)
def test_tensors_that_are_no_plain_weights_are_refused(layer: torch.nn.Linear, what: str) -> None:
    tensors = {"weight": STRANGE[what](), "bias": torch.zeros(2)}
    with pytest.raises(WeightsError, match=what):
        load_strictly(layer, tensors, source="x")
    with pytest.raises(WeightsError, match=what):
        load_strictly(layer, state_dict_of(tensors, source="x"), source="x")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", [what for what in STRANGE if what[:3] not in ("a _", "a U")])
def test_a_checkpoint_with_such_tensors_is_refused_too(
    layer: torch.nn.Linear, tmp_path: Path, what: str
) -> None:
    torch.save({"weight": STRANGE[what](), "bias": torch.zeros(2)}, tmp_path / "x.ckpt")
    with pytest.raises(WeightsError, match=what):
        load_strictly(layer, read_tensors(tmp_path / "x.ckpt"), source="x")


def test_views_parameters_and_other_precisions_of_the_same_numbers_load(
    layer: torch.nn.Linear, tmp_path: Path
) -> None:
    wide = torch.tensor([[9.0, 1, 9, 3], [9, 2, 9, 4]])
    right = torch.tensor([[1.0, 2], [3, 4]])
    for weight in (
        wide[:, 1::2].T,
        torch.nn.Parameter(right),
        right.clone().requires_grad_() * 1,
        right.double(),
        right.bfloat16(),
        torch.imag(torch.complex(right, -right).conj()),
    ):
        given = {"weight": weight, "bias": weight[0]}  # in one memory
        torch.save(given, tmp_path / "x.pt")
        write_tensors(read_tensors(tmp_path / "x.pt"), tmp_path / "x.safetensors")
        for tensors in (given, read_tensors(tmp_path / "x.safetensors")):
            load_strictly(layer, tensors, source="x")
            assert layer.weight.tolist() == [[1, 2], [3, 4]] and layer.bias.tolist() == [1, 2]


def test_counters_are_whole_numbers_and_stay_so() -> None:
    layer = torch.nn.BatchNorm1d(2)
    state = {**layer.state_dict(), "num_batches_tracked": torch.tensor(7, dtype=torch.int32)}
    load_strictly(layer, state, source="x")
    assert layer.num_batches_tracked.dtype == torch.int64 and layer.num_batches_tracked == 7


def _header(text: str, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text.encode() + bytes(16)


def _told(**fields: object) -> str:
    return json.dumps({"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields})


HEADERS = {
    "a length beyond the file": _header("{}", 2**62),
    "no header": b"",
    "metadata that is no text": _header('{"__metadata__": {"check": 5}}'),
    "nested deep": _header('{"a": ' + "[" * 5000 + "]" * 5000 + "}"),
    "offsets that overlap": _header(f'{{"a": {_told()}, "b": {_told(data_offsets=[4, 12])}}}'),
    "offsets beyond the end": _header(f'{{"a": {_told(shape=[2**40], data_offsets=[0, 2**42])}}}'),
    "a shape beyond every number": _header(f'{{"a": {_told(shape=[2**62, 2**62])}}}'),
    "a type nobody knows": _header(f'{{"a": {_told(dtype="Q7")}}}'),
    "a name twice": _header(f'{{"a": {_told()}, "a": {_told()}}}'.ljust(200))[:-8],
    "a type that torch has and no weights are of": _header(
        f'{{"a": {_told(dtype="F8_E4M3", shape=[16], data_offsets=[0, 16])}}}'
    ),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_safetensors_header_that_lies_is_one_clear_error(tmp_path: Path, what: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(HEADERS[what])
    with pytest.raises(WeightsError, match=r"x\.safetensors: "):
        read_tensors(tmp_path / "x.safetensors")
