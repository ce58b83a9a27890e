"""Asks the Hub at HF_ENDPOINT with its own client, and prints what it said as JSON."""

import json
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

api = HfApi(token=False)
listed = api.list_models(filter="mlx", search="tiny", sort="downloads", expand=["downloads", "config"])
info = api.model_info("mlx-community/tiny-1", files_metadata=True)
siblings = info.siblings or ()
tree = api.list_repo_tree("mlx-community/tiny-1", recursive=True, revision="v1")
said = {
    "listed": [(model.id, model.downloads, model.config) for model in listed],
    "by_author": [model.id for model in api.list_models(author="other")],
    "info": [info.sha, info.library_name, info.pipeline_tag, info.gated, info.tags],
    "siblings": [
        (s.rfilename, s.size, s.blob_id, None if s.lfs is None else s.lfs.sha256) for s in info.siblings or ()
    ],
    "tree": [(f.path, f.size, f.blob_id, None if f.lfs is None else f.lfs.sha256) for f in tree],
    "renamed": api.model_info("mlx-community/old").id,
    "private": HfApi(token="friend").model_info("org/private").id,
}
for name in ("no/such", "org/private"):
    try:
        api.model_info(name)
    except RepositoryNotFoundError as error:
        said[name] = error.response.status_code
try:
    api.model_info("mlx-community/tiny-1", revision="v9")
except RevisionNotFoundError as error:
    said["revision"] = error.response.status_code
for token in (False, "stranger", "friend"):
    try:
        said[f"gated {token}"] = Path(api.hf_hub_download("org/gated", "config.json", token=token)).name
    except GatedRepoError as error:
        said[f"gated {token}"] = error.response.status_code
folder = Path(snapshot_download("mlx-community/old", token=False))
said["fetched"] = sorted(path.stat().st_size for path in folder.rglob("*") if path.is_file())
print(json.dumps(said))  # noqa: T201
