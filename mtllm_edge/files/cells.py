"""Values of cells, whatever a format makes them, as text."""

from __future__ import annotations

import datetime
import decimal

import msgspec

_ENCODER = msgspec.json.Encoder(enc_hook=str)


def as_json(value: object) -> str:
    """A value in JSON; what JSON has no form for is written as a string."""
    return _ENCODER.encode(value).decode()


def as_text(value: object) -> str:
    """A value as the text of a cell: strings, dates and decimals as they are, all else in JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value) if isinstance(value, decimal.Decimal) else as_json(value)
