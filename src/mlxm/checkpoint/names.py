"""A model's name, checked before anything is done with it: what passes can be used as a part of a path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from mlxm.errors import InvalidRequest

_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_AMBIGUOUS: Final = ("..", "--")
"""Two dots mean the folder above, and the Hub's cache writes the slash of a name as two hyphens."""
_SHOWN_CHARACTERS: Final = 120
_SIMILAR: Final = 0.5


class ModelName(msgspec.Struct, frozen=True):
    """`owner/repo`, or `repo` alone; made by `parse_name`."""

    text: str

    @property
    def owner(self) -> str | None:
        """The part before the slash."""
        return self.text.rpartition("/")[0] or None

    @property
    def repo(self) -> str:
        """The part after the slash."""
        return self.text.rpartition("/")[2]

    @property
    def cache_folder(self) -> str:
        """The folder's name in the Hub's cache: models--owner--repo."""
        return f"models--{self.text.replace('/', '--')}"


def parse_name(text: str) -> ModelName:
    """The name, checked; InvalidRequest (param "model") otherwise."""
    is_name = _NAME.fullmatch(text) is not None and not any(pair in text for pair in _AMBIGUOUS)
    if not is_name or any(part.endswith((".", "-")) for part in text.split("/")):
        raise InvalidRequest(
            f"{_shown(text)} is no name of a model.",
            hint="Names look like owner/model or model: letters, digits, and single dots, hyphens or underscores.",
            param="model",
        )
    return ModelName(text)


def nearest(name: str, known: Iterable[str], *, limit: int = 3) -> tuple[str, ...]:
    """The known names most like `name`, the likeliest first: those that contain it, then those spelled alike."""
    wanted = name[:_SHOWN_CHARACTERS].casefold()
    by_folded = {text.casefold(): text for text in sorted(known)}
    containing = sorted((text for text in by_folded if wanted and wanted in text), key=len)
    alike = difflib.get_close_matches(wanted, by_folded, n=limit, cutoff=_SIMILAR)
    alike += _alike_without_owner(wanted, by_folded, limit)
    return tuple(by_folded[text] for text in dict.fromkeys((*containing, *alike)))[:limit]


def _alike_without_owner(wanted: str, folded: Iterable[str], limit: int) -> list[str]:
    """People leave the owner out, and then the owner's letters would count as differences."""
    by_repo = {text.rpartition("/")[2]: text for text in folded}
    matches = difflib.get_close_matches(wanted.rpartition("/")[2], by_repo, n=limit, cutoff=_SIMILAR)
    return [by_repo[repo] for repo in matches]


def _shown(text: str) -> str:
    """What was given, cut, and without characters that a terminal would act on."""
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")
