"""What a JSON file of ours may turn out to hold, each of it damage."""

from __future__ import annotations

CODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
"""Python begins the last three with the mark."""

DAMAGED = {
    "nothing": b"",
    "half of it": b'{"step": 1, "be',
    "no UTF-8": b'{"a": "\xff\xfe\xfa"}',
    "half a letter of UTF-16": b'\xff\xfe{\x00"',
    "zeros": bytes(64),
    "100,000 lists in each other": b"[" * 100_000 + b"]" * 100_000,
    "100,000 objects in each other": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "100 lists in each other": b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
    "5,000 digits": b'{"step": ' + b"9" * 5000 + b"}",
    "21 digits": b'{"step": 999999999999999999999}',
    "1e999": b'{"step": 1e999}',
    "NaN": b'{"step": NaN}',
    "infinity": b'{"best": {"val_dice": -Infinity}}',
    "a key twice": b'{"step": 1, "step": 2}',
    "two values": b'{"step": 1} {"step": 2}',
}
OF_ANOTHER_KIND = {
    "a list": b"[]",
    "a number": b"3",
    "a text": b'"step"',
    "null": b"null",
}
