"""Golden transcripts: what models of each family write, and what it means."""

from tests.engine.formats.transcript import BY_NAME, TOOLS, Call, Transcript, family_of
from tests.engine.formats.transcripts_json import JSON_CALLS
from tests.engine.formats.transcripts_tagged import TAGGED_CALLS
from tests.engine.formats.transcripts_thoughts import THOUGHTS

__all__ = ["BY_NAME", "TOOLS", "TRANSCRIPTS", "Call", "Transcript", "family_of"]

TRANSCRIPTS: tuple[Transcript, ...] = (*THOUGHTS, *JSON_CALLS, *TAGGED_CALLS)
