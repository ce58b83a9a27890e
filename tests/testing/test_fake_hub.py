"""The fake Hub, asked by huggingface_hub itself: what mlxm is tested against must be what the Hub is."""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mlxm.testing.fake_hub import FakeHub, Mishap

CONFIG = b'{"model_type": "llama", "architectures": ["L"], "hidden_size": 8, "quantization_config": {"bits": 4}}'
WEIGHTS = bytes(range(256)) * 40
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "sub/notes.txt": b"hello"}
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()

CLIENT = Path(__file__).parent / "children" / "ask_hub.py"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """With a page for two models only."""
    with FakeHub(cdn=True, page_size=2, tokens={"friend": ("org/gated", "org/private"), "stranger": ()}) as running:
        yield running


def ask(
    url: str, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """One request of its own connection."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def test_the_hubs_own_client_is_at_home(hub: FakeHub, tmp_path: Path) -> None:
    """It lists, describes, follows, is refused and fetches as with the Hub."""
    for number in range(5):
        hub.add(f"mlx-community/tiny-{number}", FILES, downloads=number)
    hub.add("other/tiny", FILES, tags=("pytorch",), library="transformers")
    sha = hub.add("mlx-community/tiny-1", FILES, revision="v1")
    hub.add("mlx-community/old", FILES)
    hub.rename("mlx-community/old", "mlx-community/new")
    hub.add("org/gated", FILES, gated=True)
    hub.add("org/private", FILES, is_private=True)
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, CLIENT], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    short = {"model_type": "llama", "architectures": ["L"], "quantization_config": {"bits": 4}}
    assert said["listed"] == [[f"mlx-community/tiny-{number}", number, short] for number in (4, 3, 2, 1, 0)]
    assert said["by_author"] == ["other/tiny"]
    assert said["info"][1:] == ["mlx", "text-generation", False, ["mlx", "safetensors"]]
    config_id = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG, usedforsecurity=False).hexdigest()
    assert ["config.json", len(CONFIG), config_id, None] in said["siblings"]
    assert [path for path, _, _, sha256 in said["tree"] if sha256 == SHA256] == ["model.safetensors"]
    assert said["tree"] == said["siblings"]
    assert sha != said["info"][0]
    assert said["renamed"] == "mlx-community/new"
    assert (said["no/such"], said["org/private"], said["revision"]) == (401, 401, 404)
    assert (said["gated False"], said["gated stranger"], said["gated friend"]) == (401, 403, "config.json")
    assert said["private"] == "org/private"
    assert said["fetched"] == [5, len(CONFIG), len(WEIGHTS)]
    assert hub.count(f"/{SHA256}", method="GET") == 1
    assert hub.sent_bytes(f"/{SHA256}") == len(WEIGHTS)


def test_parts_of_files_can_be_asked_for(hub: FakeHub) -> None:
    """From an offset, between two, and beyond the end."""
    hub.add("a/b", FILES)
    place = f"/{SHA256}"
    assert hub.cdn_url is not None
    status, headers, body = ask(hub.cdn_url, place, headers={"Range": "bytes=10-"})
    assert (status, headers["content-range"], body) == (206, "bytes 10-10239/10240", WEIGHTS[10:])
    assert ask(hub.cdn_url, place, headers={"Range": "bytes=0-3"})[2] == WEIGHTS[:4]
    assert ask(hub.cdn_url, place, headers={"Range": "bytes=10240-"})[0] == 416
    status, headers, body = ask(hub.url, "/a/b/resolve/main/model.safetensors", "HEAD")
    assert (status, headers["x-linked-size"], headers["x-linked-etag"], body) == (302, "10240", f'"{SHA256}"', b"")
    assert headers["location"].startswith(f"{hub.cdn_url}{place}?")


def test_without_a_second_address_files_come_at_once(tmp_path: Path) -> None:
    """Also from a folder."""
    (tmp_path / "sub").mkdir()
    for path, content in FILES.items():
        (tmp_path / path).write_bytes(content)
    with FakeHub() as hub:
        hub.add("a/b", tmp_path)
        assert hub.cdn_url is None
        assert ask(hub.url, "/a/b/resolve/main/model.safetensors")[2] == WEIGHTS
        assert ask(hub.url, "/a/b/resolve/main/sub/notes.txt")[2] == b"hello"
        assert ask(hub.url, "/a/b/resolve/main/absent")[1]["x-error-code"] == "EntryNotFound"
        assert ask(hub.url, "/a/b/resolve/v9/config.json")[1]["x-error-code"] == "RevisionNotFound"
        assert ask(hub.url, "/a/c/resolve/main/config.json")[0] == 401
        assert ask(hub.url, "/elsewhere")[0] == 404
        hub.remove("a/b")
        assert ask(hub.url, "/api/models/a/b")[0] == 401


def test_what_is_not_there_is_not_there_at_the_second_address(hub: FakeHub) -> None:
    """A hash that nobody has."""
    assert hub.cdn_url is not None
    assert ask(hub.cdn_url, "/" + "0" * 64)[0] == 404


def test_tokens_that_nobody_gave_are_told_so(hub: FakeHub) -> None:
    """A stranger hears that the model is missing, an impostor that the token is."""
    answers = [
        ask(hub.url, "/api/models/a/b", headers={"Authorization": f"Bearer {token}"}) for token in ("friend", "x")
    ]
    assert [(status, headers.get("x-error-code")) for status, headers, _ in answers] == [
        (404, "RepoNotFound"),
        (401, None),
    ]


def test_mishaps_happen_as_often_as_they_should(hub: FakeHub) -> None:
    """In their order, to what they are meant for, until it is mended."""
    hub.add("a/b", FILES)
    hub.break_with(
        Mishap("*/config.json", method="GET", status=429, headers={"Retry-After": "7"}),
        Mishap("*/config.json", times=None, replace=bytes.upper),
    )
    path = "/a/b/resolve/main/config.json"
    assert ask(hub.url, path, "HEAD")[0] == 200
    status, headers, _ = ask(hub.url, path)
    assert (status, headers["retry-after"]) == (429, "7")
    assert [ask(hub.url, path)[2] for _ in range(2)] == [CONFIG.upper()] * 2
    hub.mend()
    assert ask(hub.url, path)[2] == CONFIG
    assert hub.count("*/config.json") == 5
    assert hub.count("*/config.json", method="HEAD") == 1


@pytest.mark.parametrize("resets", [False, True])
def test_bodies_can_be_cut(hub: FakeHub, *, resets: bool) -> None:
    """As an early end, or as a broken connection."""
    hub.add("a/b", FILES)
    hub.break_with(Mishap("*/config.json", cut_after=10, resets=resets))
    with pytest.raises(ConnectionResetError if resets else http.client.IncompleteRead):
        ask(hub.url, "/a/b/resolve/main/config.json")
    assert hub.sent_bytes("*/config.json") == 10


def test_bodies_can_be_held_back_and_trickled(hub: FakeHub) -> None:
    """A client that leaves meanwhile does no harm, and an end of the hub does not wait for them."""
    hub.add("a/b", FILES)
    gate = threading.Event()
    hub.break_with(
        Mishap("*/config.json", hold=gate),
        Mishap("*/notes.txt", bytes_per_s=100),
        Mishap("/?*", bytes_per_s=1, times=None),
    )
    got: list[bytes] = []
    asking = threading.Thread(target=lambda: got.append(ask(hub.url, "/a/b/resolve/main/config.json")[2]))
    asking.start()
    assert hub.wait_for("*/config.json")
    assert got == []
    gate.set()
    asking.join(10)
    assert got == [CONFIG]
    assert ask(hub.url, "/a/b/resolve/main/sub/notes.txt")[2] == b"hello"
    assert hub.cdn_url is not None
    connection = http.client.HTTPConnection(urlsplit(hub.cdn_url).netloc, timeout=10)
    connection.request("GET", f"/{SHA256}")
    connection.getresponse().read(2)
    connection.close()
    assert not hub.wait_for("/never", within_s=0.01)


def test_a_config_that_is_none_is_left_out(hub: FakeHub) -> None:
    """The Hub describes what it can."""
    hub.add("a/b", {"config.json": b"{"})
    hub.add("a/c", {"x.txt": b""})
    listed = json.loads(ask(hub.url, "/api/models?expand=config")[2])
    assert [(model["id"], model["config"]) for model in listed] == [("a/b", {}), ("a/c", None)]
