"""The lists of models that clients ask for, and the counting of tokens beside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct, field

from mlxm.errors import InvalidRequest
from mlxm.types import ChatRequest, CompletionRequest, Message, ModelInfo
from mlxm.wire.fields import decode, refuse_unknown, split_fields
from mlxm.wire.kinds import MAX_ITEMS, Json, Name, Text, TokenIds, is_given
from mlxm.wire.openai_chat import read_template_options, refuse_unknown_in_messages
from mlxm.wire.openai_messages import ChatMessage
from mlxm.wire.openai_tools import Tools, read_tools


class Model(Struct, frozen=True, kw_only=True):
    """A model that can be asked; `root` is the one behind an alias."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    state: Literal["loaded", "available"]
    context_length: int | None
    max_model_len: int | None
    """The same under the name that other servers have for it."""

    @classmethod
    def of(cls, info: ModelInfo) -> Model:
        """The neutral facts in this dialect's words."""
        root = info.name if info.target is None else info.target
        owner, slash, _ = root.rpartition("/")
        return cls(
            id=info.name,
            created=info.created_s,
            owned_by=owner if slash else "mlxm",
            root=root,
            state="loaded" if info.is_loaded else "available",
            context_length=info.context_length,
            max_model_len=info.context_length,
        )


class ModelList(Struct, frozen=True, kw_only=True):
    """Every model that can be asked."""

    object: Literal["list"] = "list"
    data: tuple[Model, ...]


def model_list(infos: Iterable[ModelInfo]) -> bytes:
    """The answer to `GET /v1/models`."""
    return msgspec.json.encode(ModelList(data=tuple(map(Model.of, infos))))


def model(info: ModelInfo) -> bytes:
    """The answer to `GET /v1/models/{id}`."""
    return msgspec.json.encode(Model.of(info))


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────

# Values which ask for what happens anyway; any other value of these would be dropped in silence, so it is refused.
TOKENIZE_NO_OPS: Final[dict[str, tuple[Any, ...]]] = {
    "add_generation_prompt": (True,),
    "chat_template": (),
    "mm_processor_kwargs": ({},),
    "return_token_strs": (False,),
}


class TokenizeRequest(Struct, frozen=True, kw_only=True):
    """A text, or a conversation, whose tokens are wanted."""

    model: Name
    prompt: Text | None = None
    add_special_tokens: bool | None = None
    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1, max_length=MAX_ITEMS)] | None = None
    tools: Tools | None = None
    chat_template_kwargs: Json = field(default_factory=Json)
    continue_final_message: bool | None = None

    @property
    def is_bare(self) -> bool:
        """Whether the tokens that the tokenizer puts before a text are left out."""
        return self.add_special_tokens is False

    def to_request(self, request_id: str) -> ChatRequest | CompletionRequest:
        """The neutral form: what would be asked if an answer were wanted."""
        if self.messages is not None:
            return ChatRequest(
                request_id=request_id,
                model=self.model,
                messages=self._neutral_messages(self.messages),
                tools=read_tools(self.tools, None, parallel=None).tools,
                template_options=read_template_options(self.chat_template_kwargs),
                continues_final=bool(self.continue_final_message),
            )
        return CompletionRequest(request_id=request_id, model=self.model, prompt=self.prompt or "")

    def _neutral_messages(self, messages: tuple[ChatMessage, ...]) -> tuple[Message, ...]:
        return tuple(message.to_message(f"messages[{index}]") for index, message in enumerate(messages))

    def check(self) -> None:
        """Refuse what is both a text and a conversation, or neither, or mixes fields of the two."""
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("Send either prompt or messages.", param="prompt")
        if self.messages is None:
            chat_only = {
                "tools": bool(self.tools),
                "chat_template_kwargs": is_given(self.chat_template_kwargs),
                "continue_final_message": bool(self.continue_final_message),
            }
            for name, is_set in chat_only.items():
                if is_set:
                    raise InvalidRequest(f"{name} needs messages.", param=name)
        elif self.add_special_tokens:
            raise InvalidRequest("The template sets a conversation's special tokens.", param="add_special_tokens")
        elif self.continue_final_message and self.messages[-1].role != "assistant":
            raise InvalidRequest(
                "continue_final_message needs a last message of the assistant.", param="continue_final_message"
            )


class DetokenizeRequest(Struct, frozen=True, kw_only=True):
    """Tokens whose text is wanted."""

    model: Name
    tokens: TokenIds


class Tokenized(Struct, frozen=True, kw_only=True):
    """The tokens, and how many the model takes at most."""

    count: int
    max_model_len: int | None
    tokens: tuple[int, ...]
    token_strs: None = None


class Detokenized(Struct, frozen=True, kw_only=True):
    """The text."""

    prompt: str


def read_tokenize(body: bytes) -> TokenizeRequest:
    """Decode a body strictly; InvalidRequest or UnsupportedParameter names what cannot be served."""
    refuse_unknown(split_fields(body), known=frozenset(TokenizeRequest.__struct_fields__), no_ops=TOKENIZE_NO_OPS)
    request = decode(body, TokenizeRequest)
    if request.messages is not None:
        refuse_unknown_in_messages(body)
    request.check()
    return request


def read_detokenize(body: bytes) -> DetokenizeRequest:
    """Decode a body strictly; InvalidRequest or UnsupportedParameter names what cannot be served."""
    refuse_unknown(split_fields(body), known=frozenset(DetokenizeRequest.__struct_fields__), no_ops={})
    return decode(body, DetokenizeRequest)
