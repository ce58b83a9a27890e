from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from mlxm.catalog.hub import HubApi, HubOptions, RemoteFile, find_token, select_files
from mlxm.catalog.hub_answers import Facts, TreeEntry, decode, files_of_tree
from mlxm.catalog.hub_http import HubHttp
from mlxm.cli.output import ExitCode, exit_code_of
from mlxm.errors import ConfigInvalid, Forbidden, InvalidRequest, ModelBroken, ModelNotFound, Offline, Unavailable
from mlxm.testing.fake_hub import FakeHub, Mishap

T = TypeVar("T")

NAME = "mlx-community/Qwen3-0.6B-4bit"
WEIGHTS = b"weights" * 100
FILES = {"config.json": b'{"model_type": "qwen3"}', "model.safetensors": WEIGHTS, "README.md": b"# Qwen"}
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """With one model, and a token that opens another."""
    with FakeHub(cdn=True, tokens={"good": ("org/gated", "org/private"), "poor": ()}) as running:
        running.add(NAME, FILES, downloads=1234, likes=5)
        running.add("org/gated", FILES, gated=True)
        running.add("org/private", FILES, is_private=True)
        yield running


def ask(hub: FakeHub, use: Callable[[HubApi], Awaitable[T]], **options: Any) -> T:
    """Ask within bounded time."""

    async def run() -> T:
        async with asyncio.timeout(30), HubApi(HubOptions(**{"endpoint": hub.url, **options})) as api:
            return await use(api)

    return asyncio.run(run())


def test_a_model_is_described_with_its_files(hub: FakeHub) -> None:
    """Large files by their sha256, small ones by git's id."""
    model = ask(hub, lambda api: api.info(NAME))
    assert (model.name, model.asked_name, model.is_renamed, model.revision) == (NAME, NAME, False, "main")
    assert (model.downloads, model.likes, model.gated, model.library) == (1234, 5, False, "mlx")
    config_id = hashlib.sha1(b"blob 23\0" + FILES["config.json"], usedforsecurity=False).hexdigest()
    assert [file for file in model.files if file.path != "README.md"] == [
        RemoteFile(path="config.json", size_bytes=23, blob_id=config_id),
        RemoteFile(path="model.safetensors", size_bytes=700, sha256=SHA256),
    ]
    assert hub.count() == 1


def test_a_hub_that_leaves_sizes_out_is_asked_for_its_tree() -> None:
    """Page by page."""
    with FakeHub(page_size=2) as hub:
        hub.add(NAME, FILES)
        hub.break_with(Mishap(f"/api/models/{NAME}/revision/main", times=None, replace=without_sizes))
        assert ask(hub, lambda api: api.info(NAME)).files == tuple(
            RemoteFile(path=path, size_bytes=len(FILES[path]), sha256=sha256, blob_id=blob_id)
            for path, sha256, blob_id in [
                ("README.md", None, git_id(FILES["README.md"])),
                ("config.json", None, git_id(FILES["config.json"])),
                ("model.safetensors", SHA256, None),
            ]
        )
        assert hub.count("*/tree/*") == 2
        hub.break_with(Mishap("*/tree/*", status=404))
        with pytest.raises(Unavailable):
            ask(hub, lambda api: api.info(NAME))


def git_id(content: bytes) -> str:
    """What git calls a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def without_sizes(body: bytes) -> bytes:
    """A description as some mirrors give it."""
    facts = json.loads(body)
    return json.dumps({**facts, "siblings": [{"rfilename": each["rfilename"]} for each in facts["siblings"]]}).encode()


def test_what_is_missing_is_told_with_near_names(hub: FakeHub) -> None:
    """With a slip at the end, in the middle, or in the first word; exit code 4."""
    for slip in ("mlx-community/Qwen3-0.6B-4bti", "mlx-community/Qwen3-06B-4bit", "mlx-community/Qwne3-0.6B-4bit"):
        with pytest.raises(ModelNotFound, match=f"The Hub has no model {slip}") as caught:
            ask(hub, lambda api, slip=slip: api.info(slip))
        assert caught.value.hint is not None
        assert caught.value.hint.startswith(f"Did you mean {NAME}?")
        assert exit_code_of(caught.value) == ExitCode.NOT_FOUND


def test_a_name_without_neighbours_is_still_missing(hub: FakeHub) -> None:
    """Also where looking for neighbours fails; a private model is one more reason."""
    with pytest.raises(ModelNotFound) as caught:
        ask(hub, lambda api: api.info("zzz"), token="good")
    assert caught.value.hint == "`mlxm search` finds models."
    hub.break_with(Mishap("/api/models", times=None, status=400))
    with pytest.raises(ModelNotFound) as caught:
        ask(hub, lambda api: api.info("org/private"))
    assert caught.value.hint == "`mlxm search` finds models. A private model needs HF_TOKEN or `hf auth login`."
    assert ask(hub, lambda api: api.info("org/private"), token="good").name == "org/private"


def test_a_revision_that_is_missing_is_not_a_missing_model(hub: FakeHub) -> None:
    """And its name is only a part of the address."""
    for revision in ("v9", "refs/pr/1", "../../x"):
        with pytest.raises(ModelNotFound, match=f"has no revision {revision}"):
            ask(hub, lambda api, revision=revision: api.info(NAME, revision))
    assert hub.count("/api/models") == 0


def test_a_renamed_model_is_followed(hub: FakeHub) -> None:
    """And both names are known."""
    hub.rename(NAME, "mlx-community/new")
    model = ask(hub, lambda api: api.info(NAME))
    assert (model.name, model.asked_name, model.is_renamed) == ("mlx-community/new", NAME, True)


def test_a_gated_model_is_described_and_not_read(hub: FakeHub) -> None:
    """Without a token, with a poor one, with one that nobody gave, and with the right one."""
    assert ask(hub, lambda api: api.info("org/gated")).gated
    read = lambda api: api.config("org/gated", "main")  # noqa: E731  (the same four times)
    for token, words, hint in (
        (None, "open only to those", f"Accept them at {hub.url}/org/gated, then set HF_TOKEN or run `hf auth login`."),
        ("poor", "does not open", f"Accept the model's terms at {hub.url}/org/gated with"),
    ):
        with pytest.raises(Forbidden, match=words) as caught:
            ask(hub, read, token=token)
        assert caught.value.hint is not None
        assert caught.value.hint.startswith(hint)
        assert exit_code_of(caught.value) == ExitCode.REFUSED
    with pytest.raises(Forbidden, match="does not know the token"):
        ask(hub, lambda api: api.info("no/such"), token="invented")
    assert ask(hub, read, token="good") == {"model_type": "qwen3"}


def test_small_files_can_be_read(hub: FakeHub) -> None:
    """The model's card, for one; what is no config.json is not taken for one."""
    assert ask(hub, lambda api: api.read(NAME, "main", "README.md")) == b"# Qwen"
    for content in (b"[1]", b"{", b"[" * 100_000, b"\xff"):
        hub.add("a/odd", {"config.json": content}, lfs=())
        with pytest.raises(Unavailable):
            ask(hub, lambda api: api.config("a/odd", "main"))
    hub.add("a/odd", {"config.json": b'{"rope_theta": Infinity}'}, lfs=())
    assert ask(hub, lambda api: api.config("a/odd", "main")) == {"rope_theta": float("inf")}


def test_a_file_that_is_too_large_is_not_read(hub: FakeHub) -> None:
    """Whoever says that it is a config.json."""
    hub.add("a/large", {"config.json": b" " * (5 * 1024 * 1024)}, lfs=())
    with pytest.raises(Unavailable):
        ask(hub, lambda api: api.config("a/large", "main"))


def test_the_token_is_shown_to_the_endpoint_alone(hub: FakeHub) -> None:
    """A redirect to another address is followed without it."""
    hub.add("a/b", {"config.json": b"{}"}, lfs=("config.json",))
    assert ask(hub, lambda api: api.config("a/b", "main"), token="good") == {}
    assert [seen.headers.get("authorization") for seen in hub.requests] == ["Bearer good"]
    assert [seen.headers.get("authorization") for seen in hub.cdn_requests] == [None]


def test_redirects_come_to_an_end(hub: FakeHub) -> None:
    """One that leads to itself, and one that leads nowhere."""
    hub.rename(NAME, "mlx-community/new")
    hub._renamed["mlx-community/new"] = "mlx-community/new"
    with pytest.raises(Unavailable):
        ask(hub, lambda api: api.info(NAME))
    assert hub.count() == 6
    hub._renamed["mlx-community/new"] = "x" * 70_000
    with pytest.raises(Unavailable):
        ask(hub, lambda api: api.info("mlx-community/new"))


@pytest.mark.parametrize("headers", [{"Retry-After": "0"}, {"RateLimit": '"api";r=0;t=0'}, {}])
def test_too_many_requests_are_waited_out(hub: FakeHub, headers: dict[str, str]) -> None:
    """As long as the Hub says, in either of its ways of saying it."""
    hub.break_with(Mishap(status=429, headers=headers))
    assert ask(hub, lambda api: api.info(NAME)).name == NAME
    assert hub.count() == 2


def test_waiting_has_a_limit(hub: FakeHub) -> None:
    """In how often, and in how long; what the Hub asked for is said."""
    hub.break_with(Mishap(status=429, headers={"Retry-After": "0"}, times=None))
    with pytest.raises(Unavailable, match="asks to wait 0 s"):
        ask(hub, lambda api: api.info(NAME))
    assert hub.count() == 4
    hub.mend()
    hub.break_with(Mishap(status=429, headers={"Retry-After": "300"}, times=None))
    with pytest.raises(Unavailable, match="asks to wait 300 s") as caught:
        ask(hub, lambda api: api.info(NAME))
    assert caught.value.retry_after_s == 300.0
    assert hub.count() == 5


def test_a_hub_in_trouble_is_tried_again(hub: FakeHub) -> None:
    """A few times."""
    hub.break_with(Mishap(status=502), Mishap(status=503))
    assert ask(hub, lambda api: api.info(NAME)).name == NAME
    hub.break_with(Mishap(status=500, headers={"Retry-After": "0"}, times=None))
    with pytest.raises(Unavailable, match="status 500"):
        ask(hub, lambda api: api.info(NAME))


@pytest.mark.parametrize(
    "mishap",
    [
        Mishap(replace=lambda _: b"<html>hotel</html>", times=None),
        Mishap(replace=lambda _: b'{"id": 5}', times=None),
        Mishap(replace=lambda _: b'{"id": "a/b", "sha": "../../x", "siblings": []}', times=None),
        Mishap(replace=lambda _: b"[" * 100_000, times=None),
        Mishap(status=418, times=None),
        Mishap(cut_after=5, times=None),
        Mishap(cut_after=5, resets=True, times=None),
    ],
)
def test_what_the_hub_would_not_say_is_said_to_be_so(hub: FakeHub, mishap: Mishap) -> None:
    """A page to log in at, for one; the endpoint is named."""
    hub.break_with(mishap)
    with pytest.raises(Unavailable, match=hub.url):
        ask(hub, lambda api: api.info(NAME))


def test_a_hub_that_does_not_answer_is_given_up(hub: FakeHub) -> None:
    """After the time that was set."""
    gate = threading.Event()
    hub.break_with(Mishap(hold=gate))
    began_s = time.monotonic()
    with pytest.raises(Unavailable, match="ReadTimeout"):
        ask(hub, lambda api: api.info(NAME), timeout_s=0.2)
    gate.set()
    assert time.monotonic() - began_s < 10


def test_offline_nothing_is_asked(hub: FakeHub) -> None:
    """Exit code 7, for a choice and for a line that is dead."""
    with pytest.raises(Offline, match="told to stay offline") as caught:
        ask(hub, lambda api: api.info(NAME), offline=True)
    assert hub.count() == 0
    assert exit_code_of(caught.value) == ExitCode.OFFLINE
    with FakeHub() as gone:
        pass
    with pytest.raises(Offline, match=f"{gone.url} cannot be reached"):
        ask(gone, lambda api: api.info(NAME))


def test_an_endpoint_that_is_none_is_said_to_be_so(hub: FakeHub) -> None:
    """A slip in HF_ENDPOINT."""
    for endpoint in ("huggingface.co", "ftp://huggingface.co", "http://[::", "https://", ""):
        with pytest.raises(ConfigInvalid, match="is no address of a Hub"):
            ask(hub, lambda api: api.info(NAME), endpoint=endpoint)


def test_names_are_checked_before_anything_is_asked(hub: FakeHub) -> None:
    """No name is more than a part of an address; no file of a repository leaves its folder."""
    with pytest.raises(InvalidRequest):
        ask(hub, lambda api: api.info("../../x"))
    assert hub.count() == 0
    for path in ("../x.json", "/x.json", "a/../../x.json", "a\\x.json"):
        hub.add("a/odd", {path: b"{}"})
        with pytest.raises(ModelBroken):
            ask(hub, lambda api: api.info("a/odd"))


@pytest.mark.parametrize("said", ["/etc/passwd", "../../x", "", "A" * 64, "a" * 41, "a" * 40 + "\n"])
def test_no_hash_leads_out_of_the_cache(said: str) -> None:
    """Contents are named by their hashes, so that one which is none could name any file."""
    small = {"rfilename": "a.json", "size": 1, "blobId": said}
    large = {"rfilename": "a.safetensors", "size": 1, "lfs": {"size": 1, "sha256": said}}
    for sibling in (small, large):
        facts = decode(json.dumps({"id": "a/b", "siblings": [sibling]}).encode(), Facts)
        with pytest.raises(ModelBroken, match="hash"):
            facts.files()
    entry = {"type": "file", "path": "a.safetensors", "oid": "0" * 40, "lfs": {"size": 1, "oid": said}}
    with pytest.raises(ModelBroken, match="hash"):
        files_of_tree(decode(json.dumps([entry]).encode(), list[TreeEntry]))


def test_the_environment_says_which_hub_and_whether() -> None:
    """With Hugging Face's own variables."""
    assert HubOptions.from_environ({}) == HubOptions(endpoint="https://huggingface.co")
    environ = {"HF_ENDPOINT": "https://mirror.example/", "HF_HUB_OFFLINE": "1"}
    options = HubOptions.from_environ(environ, token="t")
    assert options == HubOptions(endpoint="https://mirror.example", token="t", offline=True)
    assert HubOptions.from_environ({"TRANSFORMERS_OFFLINE": "yes"}).offline
    assert not HubOptions.from_environ({"HF_HUB_OFFLINE": "0"}).offline
    assert HubOptions.from_environ({}, offline=True).offline


def test_the_token_is_that_of_hugging_faces_own_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the variable, else from the file; not when it is not to be used unasked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert find_token() is None
    (tmp_path / "token").write_text("hf_file\n")
    assert find_token() == "hf_file"
    monkeypatch.setenv("HF_TOKEN", "hf_variable")
    assert find_token() == "hf_variable"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    assert find_token() is None


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_bytes(b"\xff\xfe")])
def test_a_token_that_cannot_be_read_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    """Going on without it would make a private model look as if it were not there."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    make(tmp_path / "token")
    with pytest.raises(ConfigInvalid, match="token"):
        find_token()


def test_pages_of_a_mirror_are_asked_of_the_mirror() -> None:
    """A link to the Hub itself is only a query to repeat."""

    def pretend(body: bytes) -> bytes:
        return body

    with FakeHub(page_size=1) as hub:
        hub.add("a/b", FILES)
        hub.add("a/c", FILES)
        link = '<https://huggingface.co/api/models?cursor=1&filter=mlx>; rel="next"'
        hub.break_with(Mishap("/api/models", headers={"Link": link}, replace=pretend))

        async def use(api: HubApi) -> list[str]:
            found, query = await api.page([("filter", "mlx")])
            assert query == [("cursor", "1"), ("filter", "mlx")]
            return [facts.id for facts in (*found, *(await api.page(query))[0])]

        assert ask(hub, use) == ["a/b", "a/c"]


def test_what_a_model_needs_is_chosen_and_nothing_that_runs() -> None:
    """Also in folders; patterns choose among it."""
    paths = [
        "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json", "chat_template.jinja",
        "merges.txt", "tokenizer.model", "tokenizer.json", "qwen.tiktoken", "README.md", "LICENSE",
        "vision/config.json",
    ]  # fmt: skip
    refused = [
        "pytorch_model.bin",
        "MODEL.BIN",
        "x.pt",
        "x.pth",
        "x.pkl",
        "x.gguf",
        "modeling.py",
        "tokenizer.py",
        "a/b.py",
    ]
    other = [".gitattributes", "image.png", "onnx/model.onnx"]
    files = [RemoteFile(path=path, size_bytes=1) for path in (*paths, *refused, *other)]

    def chosen(**patterns: list[str]) -> list[str]:
        return [file.path for file in select_files(files, **patterns)]

    assert chosen() == paths
    assert chosen(include=["*"]) == [*paths, *other]
    assert chosen(include=["*.json"], exclude=["vision/"]) == [
        "model.safetensors.index.json", "config.json", "tokenizer.json",
    ]  # fmt: skip
    assert chosen(include=["vision/"]) == ["vision/config.json"]
    assert chosen(exclude=["*.safetensors", "vision/*"]) == paths[1:-1]
    for pattern in ("*.py", "pytorch_model.BIN", "*.gguf"):
        with pytest.raises(InvalidRequest, match="does not fetch"):
            chosen(include=[pattern])


def test_a_closed_client_is_closed() -> None:
    """Nothing stays open behind it."""

    async def test() -> bool:
        http = HubHttp(HubOptions())
        await http.close()
        return http._client.is_closed

    assert asyncio.run(test())
