"""Delegates that paint right-to-left texts and confidence bars."""

from __future__ import annotations

import unicodedata

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QRectF, Qt
from PySide6.QtGui import QPainter
from PySide6.QtWidgets import QStyledItemDelegate, QStyleOptionViewItem

Index = QModelIndex | QPersistentModelIndex


def is_right_to_left(text: str) -> bool:
    """Return whether the first strongly directional character of a text is right-to-left."""
    directions = (unicodedata.bidirectional(character) for character in text)
    return next((direction for direction in directions if direction in ("L", "R", "AL")), "L") != "L"


class TextDelegate(QStyledItemDelegate):
    """Paints each text in its own direction, so that final punctuation is at the correct end."""

    def initStyleOption(self, option: QStyleOptionViewItem, index: Index) -> None:
        """Set the direction, which also determines alignment and elision."""
        super().initStyleOption(option, index)
        right_to_left = is_right_to_left(option.text)
        option.direction = Qt.LayoutDirection.RightToLeft if right_to_left else Qt.LayoutDirection.LeftToRight


class BarDelegate(QStyledItemDelegate):
    """Paints a number from 0 to 1 (user role) as a bar behind the text."""

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Paint the bar, then the text."""
        value = index.data(Qt.ItemDataRole.UserRole)
        if value is not None:
            area = QRectF(option.rect).adjusted(4, 5, -4, -5)
            color = option.palette.highlight().color()
            color.setAlphaF(0.15)
            painter.fillRect(area, color)
            color.setAlphaF(0.45)
            painter.fillRect(QRectF(area.topLeft(), area.size()).adjusted(0, 0, (value - 1) * area.width(), 0), color)
        super().paint(painter, option, index)

    def initStyleOption(self, option: QStyleOptionViewItem, index: Index) -> None:
        """Center the text."""
        super().initStyleOption(option, index)
        option.displayAlignment = Qt.AlignmentFlag.AlignCenter
