"""Command line and Qt application."""

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
    """Show the window, and return the exit code."""
    parser = argparse.ArgumentParser(prog="desktop", description="Label texts in many languages.")
    parser.add_argument(
        "file", nargs="?", type=Path, help="csv file with a column of texts, or text file with one text per line"
    )
    parser.add_argument("--bundle", help="folder of a bundle, or name of an installed one")
    parser.add_argument("--task", help="task of the bundle; by default the first")
    parser.add_argument("--threads", type=int, help="CPU threads; by default all cores, at most 8")
    parser.add_argument(
        "--export", type=Path, help="label FILE, write the result here and exit, to test a frozen program"
    )
    arguments = parser.parse_args()

    application = QApplication(sys.argv[:1])
    application.setApplicationDisplayName("mtllm-edge")
    application.setStyle("Fusion")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Qt's event loop ignores Ctrl-C
    settings = QSettings(QSettings.Format.IniFormat, QSettings.Scope.UserScope, "mtllm-edge", "desktop")
    window = Window(settings, threads=arguments.threads)
    window.show()
    if arguments.export:
        window.label_and_export(arguments.export)
    window.start(arguments.bundle, arguments.task, arguments.file)
    application.exec()
    error = window.error
    shiboken6.delete(window)  # before Python exits: the widgets need the application
    if arguments.export and error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    freeze_support()  # first of all: a frozen program also runs the runtime's child processes
    sys.exit(main())
