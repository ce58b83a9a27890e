"""The Hub: what models there are, and what is in one of them.

Fetching the files is `downloads`' work; nothing here writes to the disk.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Any, Self, TypeVar
from urllib.parse import quote

import msgspec

from mlxm.catalog import hub_errors
from mlxm.catalog.hub_answers import Facts, TreeEntry, decode, decode_config, files_of_tree
from mlxm.catalog.hub_files import RemoteFile, select_files
from mlxm.catalog.hub_filters import Filters, Row, Sort, sort_rows
from mlxm.catalog.hub_http import MAX_BODY_BYTES, HubHttp, HubOptions, Query, find_token
from mlxm.catalog.hub_search import Dropped, Filled, Found, SearchEvent, search_models
from mlxm.catalog.names import nearest, parse_name
from mlxm.errors import MlxmError, ModelNotFound

__all__ = [
    "Dropped",
    "Filled",
    "Filters",
    "Found",
    "HubApi",
    "HubOptions",
    "RemoteFile",
    "RemoteModel",
    "Row",
    "SearchEvent",
    "Sort",
    "find_token",
    "select_files",
    "sort_rows",
]

T = TypeVar("T")

DEFAULT_REVISION = "main"
MAX_TEXT_BYTES = 4 * 1024 * 1024
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NUM_NEAR = 3
_UNAUTHORISED = 401
_NUM_CANDIDATES = "50"


class RemoteModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model on the Hub at one commit; `asked_name` differs from `name` where the model was renamed."""

    name: str
    asked_name: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    gated: bool = False
    tags: tuple[str, ...] = ()
    library: str | None = None
    pipeline: str | None = None
    downloads: int = 0
    likes: int = 0
    last_modified: str | None = None

    @property
    def is_renamed(self) -> bool:
        """Whether the Hub knows the model by another name now."""
        return self.name != self.asked_name


class HubApi:
    """Asks the Hub; one for many callers on one event loop, closed at the end."""

    def __init__(self, options: HubOptions) -> None:
        self.options = options
        self._http = HubHttp(options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    def search(
        self, query: str, filters: Filters | None = None, *, sort: Sort = "downloads", limit: int = 20
    ) -> AsyncGenerator[SearchEvent, None]:
        """Models for MLX, as events: Found at once, then Filled or Dropped as each becomes better known.

        At most `limit` rows stand at any time; a dropped one is replaced by the next. Close it to stop asking.
        """
        return search_models(self, query, Filters() if filters is None else filters, sort, limit)

    async def info(self, name: str, revision: str | None = None) -> RemoteModel:
        """The model and its files. Raises InvalidRequest, ModelNotFound with near names, Forbidden or Offline."""
        asked = parse_name(name).text
        wanted = DEFAULT_REVISION if revision is None else revision
        try:
            facts = await self.facts(asked, wanted)
        except ModelNotFound as error:
            if error.param != "model":
                raise
            near = await self._near(asked)
            raise hub_errors.no_such_model(asked, near, has_token=self.options.token is not None) from error
        return await self._remote_model(asked, wanted, facts)

    async def facts(self, name: str, revision: str = DEFAULT_REVISION) -> Facts:
        """What the Hub says of a model, with all files; ModelNotFound without near names."""
        at = f"/revision/{quote(revision, safe='')}"
        body = await self._get(f"/api/models/{quote(name)}{at}", (("blobs", "true"),), name=name, revision=revision)
        return self._decode(body, Facts)

    async def read(self, name: str, commit: str, path: str) -> bytes:
        """A small file of a model, such as README.md; Forbidden for a gated model without a fitting token."""
        place = f"/{quote(name)}/resolve/{quote(commit, safe='')}/{quote(path)}"
        return await self._get(place, (), name=name, revision=commit, max_bytes=MAX_TEXT_BYTES)

    async def config(self, name: str, commit: str) -> dict[str, Any]:
        """The model's config.json."""
        body = await self.read(name, commit, "config.json")
        try:
            return decode_config(body)
        except ValueError as error:
            raise hub_errors.not_understood(self.options.endpoint) from error

    async def page(self, query: Query) -> tuple[list[Facts], Query | None]:
        """One page of a listing of models, and the query of the next."""
        answer = await self._http.get("/api/models", query)
        if answer.status == _UNAUTHORISED and self.options.token is not None:
            raise hub_errors.bad_token(self.options.endpoint)
        if not answer.is_success:
            raise hub_errors.refused(self.options.endpoint, answer.status)
        return self._decode(answer.body, list[Facts]), answer.next_query

    async def _get(
        self, path: str, query: Query, *, name: str, revision: str, max_bytes: int = MAX_BODY_BYTES
    ) -> bytes:
        answer = await self._http.get(path, query, max_bytes=max_bytes)
        if answer.is_success:
            return answer.body
        raise hub_errors.by_status(
            self.options.endpoint,
            name,
            revision,
            status=answer.status,
            code=answer.error_code,
            has_token=self.options.token is not None,
        )

    async def _remote_model(self, asked: str, revision: str, facts: Facts) -> RemoteModel:
        if facts.sha is None or not _COMMIT.fullmatch(facts.sha):
            raise hub_errors.not_understood(self.options.endpoint)
        files = facts.files()
        if files is None:
            files = await self._tree(facts.id, facts.sha)
        return RemoteModel(
            name=parse_name(facts.id).text,
            asked_name=asked,
            revision=revision,
            commit=facts.sha,
            files=files,
            gated=facts.gated is not False,
            tags=facts.tags,
            library=facts.library,
            pipeline=facts.pipeline,
            downloads=facts.downloads,
            likes=facts.likes,
            last_modified=facts.last_modified,
        )

    async def _tree(self, name: str, commit: str) -> tuple[RemoteFile, ...]:
        """The files of a Hub that leaves their sizes out of its description of a model."""
        entries: list[TreeEntry] = []
        query: Query | None = (("recursive", "true"),)
        while query is not None:
            answer = await self._http.get(f"/api/models/{quote(name)}/tree/{commit}", query)
            if not answer.is_success:
                raise hub_errors.refused(self.options.endpoint, answer.status)
            entries += self._decode(answer.body, list[TreeEntry])
            query = answer.next_query
        return files_of_tree(entries)

    async def _near(self, name: str) -> tuple[str, ...]:
        """Names on the Hub that the caller may have meant."""
        wanted = parse_name(name)
        start = re.split(r"[-_.]", wanted.repo)[0]
        questions: list[tuple[str, str]] = [("search", wanted.repo), ("search", start[: max(3, len(start) // 2)])]
        if wanted.owner is not None:
            questions.append(("author", wanted.owner))
        queries = [(question, ("filter", "mlx"), ("limit", _NUM_CANDIDATES)) for question in questions]
        try:
            pages = await asyncio.gather(*(self.page(query) for query in queries))
        except MlxmError:
            return ()  # the name is not found either way, and that is what the caller has to hear
        return nearest(name, {facts.id: None for found, _ in pages for facts in found}, limit=_NUM_NEAR)

    def _decode(self, body: bytes, kind: type[T]) -> T:
        try:
            return decode(body, kind)
        except ValueError as error:
            raise hub_errors.not_understood(self.options.endpoint) from error
