"""`mtllm-edge languages`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtllm_edge import safe_text
from mtllm_edge.bundle.reader import Bundle

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
def languages(bundle: Path | None) -> None:
    """Print each language that a BUNDLE knows on a line: its code, and after a tab its English name.

    Without a bundle, or of one that need not be told, these are the codes of FLORES-200, by which results name
    languages then; others may be given, too.
    """
    from mtllm_edge.languages.matching import LanguageMatcher

    manifest = None if bundle is None else Bundle.open(bundle).manifest
    known = manifest.languages if manifest is not None and manifest.encoder.needs_language else ()
    for code, title in LanguageMatcher(known).titles().items():
        click.echo(f"{safe_text.printable(code)}\t{title}")
