"""Cells of any format as text."""

from __future__ import annotations

import datetime
import decimal

import msgspec

_ENCODER = msgspec.json.Encoder(enc_hook=str)


def as_json(cell: object) -> str:
    """Encode a cell in JSON; a type that JSON lacks becomes a string."""
    return _ENCODER.encode(cell).decode()


def as_text(cell: object) -> str:
    """Return the text of a cell: strings, dates and decimals as they are, all other types in JSON."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, (datetime.date, datetime.time)):
        return cell.isoformat()
    return str(cell) if isinstance(cell, decimal.Decimal) else as_json(cell)
