"""Writes families.md: `python docs/generate_families.py`, run where the tests are.

The table is that of the code, and what proves each family are the transcripts of the tests; these compare the page with
what it would be.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from mlxm.engine.formats.families import FAMILIES, GENERIC, Entry, Family
from tests.engine.formats.transcripts import TRANSCRIPTS

PAGE = Path(__file__).with_name("families.md")
_HEAD = (
    "| Family | Recognised by | Calls | Thoughts | Template | Transcripts |",
    "|---|---|---|---|---|---|",
)
_PAGE = """\
# Families

How answers of each family are understood. A model's family is found by its `model_type` and by what its chat template
contains; markup that the template itself shows wins over the table, so that fine-tunes with markup of their own work,
and so does a model of no family here.

- *Calls* are the formats that are read, the first of which is written when a grammar demands calls. Names of formats
  are those of `mlxm/engine/formats/tools.py`.
- *Thoughts* is the tag that opens them; they come as reasoning, and calls inside of them are not made.
- *Template* says what is particular about the family's templates. As far as their text tells, each model's own
  template decides.
- *Transcripts* is the number of texts of the family in `tests/engine/formats`, each read whole, cut in
  two at every place, one character at a time, in random pieces, and cut off everywhere.

How sequences of a model are batched and whose prefixes are reused depends on its architecture: see
[architectures](architectures.md).

{table}
"""


def page() -> str:
    """The page as it should be."""
    entries = (*FAMILIES, Entry(family=GENERIC))
    return _PAGE.format(table="\n".join((*_HEAD, *(_row(entry) for entry in entries))))


def _row(entry: Entry) -> str:
    family = entry.family
    num_transcripts = sum(transcript.family == family.name for transcript in TRANSCRIPTS)
    thoughts = "channels" if family.is_harmony else _code(family.reasoning.open) if family.reasoning else ""
    calls = "channels" if family.is_harmony else ", ".join(family.tools)
    cells = (family.title, _recognised(entry), calls, thoughts, "; ".join(_template(family)), str(num_transcripts))
    return f"| {' | '.join(cells)} |"


def _recognised(entry: Entry) -> str:
    types = ", ".join(sorted(entry.types))
    signs = " ".join(_code(sign) for sign in entry.signs)
    return "; ".join(part for part in (types, signs) if part) or "its template's markup"


def _template(family: Family) -> Iterator[str]:
    quirks = family.quirks
    if not quirks.has_system:
        yield "no system role"
    if not quirks.has_tools:
        yield "no tools"
    if not quirks.has_tool_role:
        yield "no tool role"
    if quirks.alternates:
        yield "roles alternate"
    if quirks.arguments == "string":
        yield "arguments as text"
    if quirks.max_calls is not None:
        yield f"{quirks.max_calls} call a message"
    if quirks.call_id is not None:
        yield f"ids like {_code(quirks.call_id)}"


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
