"""What a model folder says about prompts: its chat templates and its special tokens, wherever its maker put them.

The order in which the files count is that of transformers, so that a model sounds here as its maker heard it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from tokenizers import AddedToken

from mlxm.errors import InvalidRequest, ModelBroken
from mlxm.prep.files import extra_template_paths, read_object, read_text

_NAMED: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA: Final = ("extra_special_tokens", "additional_special_tokens")


class _Marked(msgspec.Struct, frozen=True):
    """A token as configuration files describe it."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool | None = None
    special: bool = False

    def token(self, *, special: bool) -> AddedToken:
        """The same for `tokenizers`, which decides itself about what is not said."""
        normalized = {} if self.normalized is None else {"normalized": self.normalized}
        return AddedToken(
            self.content,
            single_word=self.single_word,
            lstrip=self.lstrip,
            rstrip=self.rstrip,
            special=special,
            **normalized,
        )


class SpecialTokens(msgspec.Struct, frozen=True):
    """`named` may be printed by a template; `marked` are described in full, in the order of their ids."""

    named: dict[str, AddedToken]
    extra: tuple[AddedToken, ...]
    marked: tuple[AddedToken, ...]

    def texts(self) -> dict[str, str]:
        """The named tokens as a template prints them."""
        return {name: token.content for name, token in self.named.items()}


def find_template(folder: Path) -> str:
    """The source of the model's default chat template; InvalidRequest when it has none."""
    templates = _find_templates(folder)
    if not templates:
        raise InvalidRequest(
            "This model has no chat template, so it cannot take a conversation.",
            hint="Use its instruction-tuned version, or give it plain text to complete.",
        )
    if "default" not in templates:
        names = ", ".join(sorted(templates))
        raise InvalidRequest(f"This model has no default chat template, only: {names}.", hint="Use another model.")
    return templates["default"]


def find_tool_template(folder: Path) -> str | None:
    """The source of the template that the model has for conversations with tools alone, if it has one."""
    return _find_templates(folder).get("tool_use")


def find_template_texts(folder: Path) -> str | None:
    """What its templates together give away of its way of writing; None when it has none."""
    templates = _find_templates(folder)
    found = [templates[name] for name in ("default", "tool_use") if name in templates]
    return "\n".join(found) if found else None


def find_model_type(folder: Path) -> str | None:
    """What kind of model config.json says it is."""
    found = read_object(folder / "config.json").get("model_type")
    return found if isinstance(found, str) else None


def _find_templates(folder: Path) -> dict[str, str]:
    return (
        _from_template_files(folder)
        or _named_templates(read_object(folder / "tokenizer_config.json").get("chat_template"))
        or _named_templates(read_object(folder / "chat_template.json").get("chat_template"))
    )


def _from_template_files(folder: Path) -> dict[str, str]:
    paths = {"default": folder / "chat_template.jinja"}
    paths |= {path.name.removesuffix(".jinja"): path for path in extra_template_paths(folder)}
    texts = {name: read_text(path) for name, path in paths.items()}
    return {name: text for name, text in texts.items() if text is not None}


def _named_templates(value: object) -> dict[str, str]:
    """Templates by name from any form in which a configuration holds them."""
    match value:
        case None:
            return {}
        case str():
            return {"default": value}
        case list():
            value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    try:
        return msgspec.convert(value, dict[str, str])
    except msgspec.ValidationError as error:
        raise ModelBroken("The chat_template of this model has a form that is not known.") from error


def find_special_tokens(folder: Path) -> SpecialTokens:
    """All special tokens that the folder's configuration names."""
    settings = read_object(folder / "tokenizer_config.json")
    described = settings.get("added_tokens_decoder")
    if described is None:  # files from before that key spread them over two
        settings |= read_object(folder / "special_tokens_map.json")
    named = {key: value for key, value in settings.items() if key.endswith("_token")}
    extra: object = next((settings[key] for key in _EXTRA if settings.get(key)), [])
    if isinstance(extra, dict):
        named, extra = named | extra, []
    if not isinstance(extra, list):
        raise _unknown_form("extra_special_tokens")
    return SpecialTokens(
        {name: token for name, value in named.items() if (token := _token(name, value)) is not None},
        tuple(token for value in extra if (token := _token("extra_special_tokens", value)) is not None),
        _marked(described),
    )


def _marked(described: object) -> tuple[AddedToken, ...]:
    if described is None:
        return ()
    try:
        by_id = msgspec.convert(described, dict[int, _Marked], strict=False)
    except msgspec.ValidationError as error:
        raise _unknown_form("added_tokens_decoder") from error
    return tuple(by_id[place].token(special=by_id[place].special) for place in sorted(by_id))


def _token(name: str, value: object) -> AddedToken | None:
    match value:
        case None | bool():  # bool: add_bos_token and its like are switches
            return None
        case str():
            return AddedToken(value, special=True)
    try:
        return msgspec.convert(value, _Marked).token(special=True)
    except msgspec.ValidationError as error:
        raise _unknown_form(name) from error


def _unknown_form(name: str) -> ModelBroken:
    return ModelBroken(f"{name} in tokenizer_config.json of this model has a form that is not known.")
