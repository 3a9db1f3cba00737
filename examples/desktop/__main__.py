"""The program: its arguments, and the application around the window."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import shiboken6
from PySide6.QtCore import QSettings
from PySide6.QtWidgets import QApplication

from examples.desktop.window import Window
from mtllm_edge.frozen import freeze_support


def main() -> int:
    """Show the window; returns the exit code."""
    parser = argparse.ArgumentParser(prog="desktop", description="Label texts in many languages.")
    parser.add_argument("file", nargs="?", type=Path, help="csv with a column of texts, or a text per line")
    parser.add_argument("--bundle", help="folder of a bundle, or the name of an installed one")
    parser.add_argument("--task", help="task of the bundle; by default its first")
    parser.add_argument("--threads", type=int, help="CPU threads; by default all cores, at most 8")
    parser.add_argument("--export", type=Path, help="label FILE, write it here, and end: how a frozen program is tried")
    arguments = parser.parse_args()

    application = QApplication(sys.argv[:1])
    application.setApplicationDisplayName("mtllm-edge")
    application.setStyle("Fusion")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Qt's loop would not notice Ctrl-C
    settings = QSettings(QSettings.Format.IniFormat, QSettings.Scope.UserScope, "mtllm-edge", "desktop")
    window = Window(settings, threads=arguments.threads)
    window.show()
    if arguments.export:
        window.label_and_export(arguments.export)
    window.start(arguments.bundle, arguments.task, arguments.file)
    application.exec()
    error = window.error
    shiboken6.delete(window)  # now, and not when Python ends: its widgets need the application
    if arguments.export and error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    freeze_support()  # before anything else: frozen, this program also runs the runtime's child processes
    sys.exit(main())
