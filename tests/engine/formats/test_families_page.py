from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_of_families_is_what_the_code_says() -> None:
    """It is written by a script from the table and the transcripts."""
    spec = importlib.util.spec_from_file_location("generate_families", DOCS / "generate_families.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page(), "run: python docs/generate_families.py"
