"""`mtllm-edge languages`."""

from __future__ import annotations

from pathlib import Path

import click

from mtllm_edge import safe_text
from mtllm_edge.bundle.reader import Bundle


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
def languages(bundle: Path | None) -> None:
    """Print the languages of a BUNDLE, one per line: code, tab, English name.

    Without a BUNDLE, or for one whose encoder requires no language, these are the codes of FLORES-200. Such an encoder
    accepts other languages, too.
    """
    from mtllm_edge.languages.matching import LanguageMatcher

    manifest = None if bundle is None else Bundle.open(bundle).manifest
    codes = manifest.languages if manifest is not None and manifest.encoder.needs_language else ()
    for code, title in LanguageMatcher(codes).titles().items():
        click.echo(f"{safe_text.printable(code)}\t{title}")
