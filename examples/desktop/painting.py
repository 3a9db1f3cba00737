"""How cells are drawn: right-to-left texts from the right, confidence as a bar."""

from __future__ import annotations

import unicodedata

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QRectF, Qt
from PySide6.QtGui import QPainter
from PySide6.QtWidgets import QStyledItemDelegate, QStyleOptionViewItem

Index = QModelIndex | QPersistentModelIndex


def is_right_to_left(text: str) -> bool:
    """Whether the first letter of a text that has a direction runs from right to left."""
    directions = (unicodedata.bidirectional(sign) for sign in text)
    return next((direction for direction in directions if direction in ("L", "R", "AL")), "L") != "L"


class TextDelegate(QStyledItemDelegate):
    """Each text in its own direction: in that of the window, a full stop in Arabic would stand at the wrong end."""

    def initStyleOption(self, option: QStyleOptionViewItem, index: Index) -> None:
        """Set the direction, by which Qt also aligns the text and cuts its end."""
        super().initStyleOption(option, index)
        right_to_left = is_right_to_left(option.text)
        option.direction = Qt.LayoutDirection.RightToLeft if right_to_left else Qt.LayoutDirection.LeftToRight


class BarDelegate(QStyledItemDelegate):
    """A number from 0 to 1 (in the role of the user) as a bar behind its words."""

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Draw the bar, then the words on it."""
        share = index.data(Qt.ItemDataRole.UserRole)
        if share is not None:
            area = QRectF(option.rect).adjusted(4, 5, -4, -5)
            colour = option.palette.highlight().color()
            colour.setAlphaF(0.15)
            painter.fillRect(area, colour)
            colour.setAlphaF(0.45)
            painter.fillRect(QRectF(area.topLeft(), area.size()).adjusted(0, 0, (share - 1) * area.width(), 0), colour)
        super().paint(painter, option, index)

    def initStyleOption(self, option: QStyleOptionViewItem, index: Index) -> None:
        """Centre the words."""
        super().initStyleOption(option, index)
        option.displayAlignment = Qt.AlignmentFlag.AlignCenter
