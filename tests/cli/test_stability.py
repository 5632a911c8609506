from __future__ import annotations

import pytest

from sdseg_cli.cli.stability import listed
from sdseg_cli.core.errors import ConfigError


def test_a_list_of_numbers_is_read_in_its_order_each_once() -> None:
    assert listed("--steps", "10,1, 2,1", int, 1, 1000) == (10, 1, 2)
    assert listed("--eta", "0,0.5", float, 0.0, 1.0) == (0.0, 0.5)
    assert listed("--steps", None, int, 1, 1000) is None


@pytest.mark.parametrize(
    ("option", "text", "kind", "most"),
    [
        ("--steps", "1,x", int, 1000),
        ("--steps", "", int, 1000),
        ("--steps", "1,,2", int, 1000),
        ("--steps", "1.5", int, 1000),
        ("--steps", "1001", int, 1000),
        ("--steps", "-1", int, 1000),
        ("--eta", "3", float, 1.0),
        ("--eta", "0,nan", float, 1.0),
    ],
)
def test_a_bad_list_is_refused_by_its_option(option: str, text: str, kind, most) -> None:
    with pytest.raises(ConfigError, match=option) as failure:
        listed(option, text, kind, kind(0), most)
    assert option in failure.value.hint
