"""A Hub on this machine: a real HTTP server that speaks the Hub's API as far as mlxm and huggingface_hub use it.

It holds what a test puts in, counts what it is asked for, and breaks as it is told to.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, unquote, urlencode

from mlxm.testing.fake_hub_http import Answer, Mishap, Seen, Server, as_json, failure, ranged
from mlxm.testing.fake_hub_models import LFS_PATTERNS, FakeCommit, FakeFile, FakeModel, read_folder

__all__ = ["FakeHub", "Mishap", "Seen"]

_LIST = "/api/models"


class FakeHub:
    """Use it as a context manager; `url` is its endpoint.

    `tokens` maps a token to the names of the gated or private models that it opens. With `cdn` LFS files come from a
    second server at another address, as the Hub's do; what that is asked for is in `cdn_requests`. With `xet` answers
    offer Xet storage, which is not there.
    """

    def __init__(
        self,
        *,
        tokens: Mapping[str, tuple[str, ...]] | None = None,
        cdn: bool = False,
        xet: bool = False,
        page_size: int = 1000,
    ) -> None:
        self._tokens = {} if tokens is None else dict(tokens)
        self._xet = xet
        self._page_size = page_size
        self._models: dict[str, FakeModel] = {}
        self._renamed: dict[str, str] = {}
        self._mishaps: list[tuple[Mishap, list[int]]] = []
        self._lock = threading.RLock()
        self._asked = threading.Condition(self._lock)
        self.stopping = threading.Event()
        self.requests: list[Seen] = []
        self.cdn_requests: list[Seen] = []
        self._server = Server(self._receive, self._answer, self.stopping)
        self._cdn = Server(self._receive_cdn, self._answer_cdn, self.stopping) if cdn else None

    @property
    def url(self) -> str:
        """The endpoint."""
        return self._server.url

    @property
    def cdn_url(self) -> str | None:
        """Where large files come from, when that is elsewhere."""
        return None if self._cdn is None else self._cdn.url

    def __enter__(self) -> Self:
        for server in self._servers():
            server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for server in self._servers():
            server.stop()

    def _servers(self) -> list[Server]:
        return [self._server] if self._cdn is None else [self._server, self._cdn]

    def add(
        self,
        name: str,
        files: Path | Mapping[str, bytes],
        *,
        revision: str = "main",
        lfs: tuple[str, ...] = LFS_PATTERNS,
        **facts: Any,
    ) -> str:
        """Add a model made of a folder or of contents by path, or a commit to one; `facts` are FakeModel's fields."""
        contents = read_folder(files) if isinstance(files, Path) else files
        with self._lock:
            model = self._models.setdefault(name, FakeModel(name))
            for key, value in facts.items():
                setattr(model, key, value)
            return model.add_commit(contents, revision, lfs).sha

    def rename(self, old: str, new: str) -> None:
        """Give a model another name; the old one leads there."""
        with self._lock:
            model = self._models.pop(old)
            model.name = new
            self._models[new] = model
            self._renamed[old] = new

    def remove(self, name: str) -> None:
        """Forget a model."""
        with self._lock:
            del self._models[name]

    def break_with(self, *mishaps: Mishap) -> None:
        """Let these happen from now on; the first that fits a request counts."""
        with self._lock:
            self._mishaps += [(mishap, [0]) for mishap in mishaps]

    def mend(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._mishaps.clear()

    def count(self, path: str = "*", *, method: str | None = None) -> int:
        """How many requests fitted a glob over their path, at either address."""
        return sum(1 for seen in self._all_seen() if _is_like(seen, path, method))

    def sent_bytes(self, path: str = "*") -> int:
        """How many bytes of bodies went out for a glob over paths, at either address."""
        return sum(seen.sent_bytes for seen in self._all_seen() if _is_like(seen, path, None))

    def wait_for(self, path: str, *, method: str | None = None, within_s: float = 30.0) -> bool:
        """Wait until something that fits has been asked for; whether it has."""
        with self._asked:
            return self._asked.wait_for(lambda: self.count(path, method=method) > 0, within_s)

    def _all_seen(self) -> list[Seen]:
        return [*self.requests, *self.cdn_requests]

    def _receive(self, seen: Seen) -> Mishap | None:
        return self._note(seen, self.requests)

    def _receive_cdn(self, seen: Seen) -> Mishap | None:
        return self._note(seen, self.cdn_requests)

    def _note(self, seen: Seen, log: list[Seen]) -> Mishap | None:
        """Keep a request, tell whoever waits for one, and find what is to go wrong with it."""
        with self._asked:
            log.append(seen)
            self._asked.notify_all()
            for mishap, used in self._mishaps:
                if mishap.fits(seen.method, seen.path) and (mishap.times is None or used[0] < mishap.times):
                    used[0] += 1
                    return mishap
        return None

    def _answer(self, seen: Seen) -> Answer:
        with self._lock:
            if seen.path == _LIST:
                return self._answer_list(seen)
            parts = [unquote(part) for part in seen.path.strip("/").split("/")]
            if parts[:2] == ["api", "models"]:
                return self._answer_api(seen, parts[2:])
            if "resolve" in parts:
                at = parts.index("resolve")
                return self._answer_file(seen, "/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]))
            return failure(404, None, "Not found")

    def _answer_list(self, seen: Seen) -> Answer:
        query = seen.query
        found = [model for model in self._models.values() if self._is_visible(model, seen) and _is_wanted(model, query)]
        described = [model.describe(model.commits[model.refs["main"]]) for model in found]
        described.sort(key=lambda facts: facts[_first(query, "sort", "downloads")], reverse=True)
        start, limit = int(_first(query, "cursor", "0")), int(_first(query, "limit", str(self._page_size)))
        end = start + min(limit, self._page_size)
        page = [_pick(facts, query) for facts in described[start:end]]
        return as_json(page, self._next_page(seen, end if end < len(described) else None))

    def _next_page(self, seen: Seen, cursor: int | None) -> dict[str, str]:
        if cursor is None:
            return {}
        query = urlencode({**seen.query, "cursor": [str(cursor)]}, doseq=True)
        return {"Link": f'<{self.url}{seen.path}?{query}>; rel="next"'}

    def _answer_api(self, seen: Seen, parts: list[str]) -> Answer:
        """`name`, `name/revision/REV` or `name/tree/REV/FOLDER`, where a name has one part or two."""
        size = 1 if len(parts) == 1 or parts[1] in ("revision", "tree") else 2
        name, rest = "/".join(parts[:size]), parts[size:]
        if name in self._renamed:
            return self._redirect(seen, name, "/api/models/")
        model = self._models.get(name)
        if model is None or not self._is_visible(model, seen):
            return self._no_such_model(seen)
        commit = model.commit_at(rest[1] if len(rest) > 1 else "main")
        if commit is None:
            return failure(404, "RevisionNotFound", "Invalid rev id")
        if rest and rest[0] == "tree":
            return self._answer_tree(seen, commit)
        return as_json(_pick(model.describe(commit, with_blobs="blobs" in seen.query), seen.query))

    def _answer_tree(self, seen: Seen, commit: FakeCommit) -> Answer:
        start = int(_first(seen.query, "cursor", "0"))
        entries = [file.as_tree_entry() for file in commit.files.values()]
        end = start + self._page_size
        return as_json(entries[start:end], self._next_page(seen, end if end < len(entries) else None))

    def _answer_file(self, seen: Seen, name: str, revision: str, path: str) -> Answer:
        if name in self._renamed:
            return self._redirect(seen, name, "/")
        model = self._models.get(name)
        if model is None or not self._is_visible(model, seen):
            return self._no_such_model(seen)
        if model.gated and not self._opens(seen, model):
            status = 401 if self._token(seen) is None else 403
            return failure(status, "GatedRepo", f"Access to model {name} is restricted.")
        commit = model.commit_at(revision)
        if commit is None:
            return failure(404, "RevisionNotFound", "Invalid rev id")
        if path not in commit.files:
            return failure(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.sha})
        return self._file(seen, commit, commit.files[path])

    def _file(self, seen: Seen, commit: FakeCommit, file: FakeFile) -> Answer:
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.is_lfs:
            headers |= {"X-Linked-Size": str(len(file.content)), "X-Linked-Etag": f'"{file.sha256}"'}
        if file.is_lfs and self._xet:
            headers |= {"X-Xet-Hash": file.sha256, "X-Xet-Refresh-Route": f"{self.url}/api/no-such-store"}
        if file.is_lfs and self._cdn is not None:
            return Answer(302, headers=headers | {"Location": f"{self._cdn.url}/{file.sha256}?signature=x"})
        return ranged(seen, file.content, headers)

    def _answer_cdn(self, seen: Seen) -> Answer:
        sha256 = seen.path.strip("/")
        with self._lock:
            for model in self._models.values():
                for commit in model.commits.values():
                    for file in commit.files.values():
                        if file.is_lfs and file.sha256 == sha256:
                            return ranged(seen, file.content, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})
        return failure(404, None, "Not found")

    def _redirect(self, seen: Seen, old: str, prefix: str) -> Answer:
        rest = seen.path.removeprefix(prefix + quote(old))
        query = f"?{urlencode(seen.query, doseq=True)}" if seen.query else ""
        return Answer(307, headers={"Location": f"{prefix}{quote(self._renamed[old])}{rest}{query}"})

    def _no_such_model(self, seen: Seen) -> Answer:
        """Without a token the Hub does not tell a missing model from a private one."""
        if self._token(seen) is None:
            return failure(401, "RepoNotFound", "Invalid username or password.")
        if self._token(seen) not in self._tokens:
            return failure(401, None, "Invalid credentials in Authorization header")
        return failure(404, "RepoNotFound", "Repository not found")

    def _is_visible(self, model: FakeModel, seen: Seen) -> bool:
        return not model.is_private or self._opens(seen, model)

    def _opens(self, seen: Seen, model: FakeModel) -> bool:
        token = self._token(seen)
        return token is not None and model.name in self._tokens.get(token, ())

    def _token(self, seen: Seen) -> str | None:
        return seen.headers["authorization"].removeprefix("Bearer ") if "authorization" in seen.headers else None


def _first(query: Mapping[str, list[str]], name: str, default: str) -> str:
    return query[name][0] if name in query else default


def _is_wanted(model: FakeModel, query: Mapping[str, list[str]]) -> bool:
    """Whether a search finds the model."""
    words = _first(query, "search", "").lower().split()
    tags = (*model.tags, model.library, model.pipeline)
    return (
        all(word in model.name.lower() for word in words)
        and _first(query, "author", model.author) == model.author
        and all(tag in tags for tag in query.get("filter", []))
    )


def _pick(facts: Mapping[str, Any], query: Mapping[str, list[str]]) -> dict[str, Any]:
    """The facts that were asked for by expand, or those that the Hub gives anyway."""
    asked = [*query.get("expand", []), *query.get("expand[]", [])]
    return {key: value for key, value in facts.items() if not asked or key in ("_id", "id", *asked)}


def _is_like(seen: Seen, path: str, method: str | None) -> bool:
    return fnmatchcase(seen.path, path) and method in (None, seen.method)
