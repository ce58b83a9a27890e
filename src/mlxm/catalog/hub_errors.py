"""What goes wrong between this machine and the Hub, said once for everybody who talks to it."""

from __future__ import annotations

from collections.abc import Sequence

from mlxm.errors import Forbidden, MlxmError, ModelNotFound, Offline, Unavailable

_LOCAL = "`mlxm ls` shows the models that are on this machine."


def offline_by_choice(what: str) -> Offline:
    """The network is needed, and is not to be used."""
    return Offline(f"{what} needs the network, and mlxm was told to stay offline.", hint=_LOCAL)


def unreachable(endpoint: str, why: str) -> Offline:
    """No connection."""
    return Offline(f"{endpoint} cannot be reached: {why}.", hint=f"Check the network and HF_ENDPOINT. {_LOCAL}")


def interrupted(endpoint: str, why: str) -> Unavailable:
    """A connection that came to nothing."""
    return Unavailable(f"{endpoint} did not answer to the end: {why}.", hint="Try again.", retry_after_s=1.0)


def refused(endpoint: str, status: int) -> Unavailable:
    """An answer with a status that says nothing about the model."""
    hint = "Try again later." if status >= 500 else "Check HF_ENDPOINT."  # noqa: PLR2004  (the class of a status)
    return Unavailable(f"{endpoint} answered with status {status}.", hint=hint, retry_after_s=5.0)


def not_understood(endpoint: str) -> Unavailable:
    """An answer that the Hub would not give."""
    return Unavailable(f"{endpoint} gave an answer that the Hub would not give.", hint="Check HF_ENDPOINT.")


def rate_limited(endpoint: str, wait_s: float) -> Unavailable:
    """Too many requests."""
    return Unavailable(
        f"{endpoint} wants fewer requests and asks to wait {wait_s:.0f} s.",
        hint="Wait, or set HF_TOKEN: requests with a token have a higher limit.",
        retry_after_s=wait_s,
    )


def forbidden(endpoint: str, name: str, *, has_token: bool) -> Forbidden:
    """A gated model, or a token that does not open it."""
    page = f"{endpoint}/{name}"
    if has_token:
        return Forbidden(
            f"The token does not open {name}.",
            hint=f"Accept the model's terms at {page} with the token's account, or set another HF_TOKEN.",
        )
    return Forbidden(
        f"{name} is open only to those who accepted its terms.",
        hint=f"Accept them at {page}, then set HF_TOKEN or run `hf auth login`.",
    )


def bad_token(endpoint: str) -> Forbidden:
    """A token that the Hub does not know."""
    return Forbidden(
        f"{endpoint} does not know the token that was sent.",
        hint="Set another HF_TOKEN, or run `hf auth login` again.",
    )


def no_such_model(name: str, near: Sequence[str], *, has_token: bool) -> ModelNotFound:
    """A name without a model; the Hub hides private models behind the same answer."""
    hint = f"Did you mean {', '.join(near)}?" if near else "`mlxm search` finds models."
    if not has_token:
        hint += " A private model needs HF_TOKEN or `hf auth login`."
    return ModelNotFound(f"The Hub has no model {name}.", hint=hint, param="model")


def no_such_revision(name: str, revision: str) -> ModelNotFound:
    """A model without that branch, tag or commit."""
    return ModelNotFound(
        f"{name} has no revision {revision}.",
        hint="Leave the revision out to take the newest, or name a branch, a tag or a commit.",
        param="revision",
    )


def no_such_file(name: str) -> ModelNotFound:
    """A model without the file that was asked for."""
    return ModelNotFound(f"{name} does not have that file.", hint="Look at what it has on its page.", param="path")


def by_status(endpoint: str, name: str, revision: str, *, status: int, code: str | None, has_token: bool) -> MlxmError:
    """What an answer other than success means for a model."""
    if code == "RevisionNotFound":
        return no_such_revision(name, revision)
    if code == "EntryNotFound":
        return no_such_file(name)
    if code == "GatedRepo" or (status == 403 and code != "RepoNotFound"):  # noqa: PLR2004  (forbidden)
        return forbidden(endpoint, name, has_token=has_token)
    if status == 401 and code is None and has_token:  # noqa: PLR2004  (unauthorised)
        return bad_token(endpoint)
    if status in (401, 404):
        return no_such_model(name, (), has_token=has_token)
    return refused(endpoint, status)
