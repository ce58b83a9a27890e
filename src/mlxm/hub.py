"""What everything else is built from, and the way of one request through it: router, prep, pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from mlxm.chats import Chat
from mlxm.echo import Echo, Prompt
from mlxm.errors import Cancelled, ContextTooLong, InvalidRequest
from mlxm.frames import Delta, Fault, Generate, RequestEnded, RequestStarted, Tokens
from mlxm.hub_pool import PoolOrders, Reload, Wishes
from mlxm.pool.families import Families
from mlxm.pool.launch import Workers
from mlxm.pool.ledger import LedgerFile
from mlxm.pool.limit import MemoryLimit
from mlxm.pool.options import Parts, PoolOptions, estimate_files
from mlxm.pool.pool import LocalModel, Pool
from mlxm.pool.prep import Prep, PrepLimits
from mlxm.pool.stream import FINISHED, RequestEvent, RequestStream, leave_alone
from mlxm.pool.worker import OnDeath, OnWords, WorkerOptions, ignore
from mlxm.router import Router
from mlxm.settings import CONFIG_NAME, Settings, parse_bytes, parse_share
from mlxm.types import (
    AnswerOptions,
    ChatRequest,
    ChoiceEnded,
    CompletionRequest,
    Encoded,
    Ended,
    Event,
    ModelInfo,
    Started,
    TextDelta,
)

if TYPE_CHECKING:
    from mlxm.downloads import Downloads
    from mlxm.hub_access import HubAccess


class HubSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub needs to know."""

    home: Path
    prep: PrepLimits = PrepLimits()
    worker: WorkerOptions = WorkerOptions()
    pool: Wishes = Wishes()

    @classmethod
    def of(cls, settings: Settings) -> HubSettings:
        """The hub's part of all settings."""
        return cls(
            home=settings.home,
            prep=PrepLimits(timeout_s=settings.prep.timeout_s, memory_bytes=settings.prep.memory),
            worker=WorkerOptions(
                blas=settings.worker.blas,
                load_timeout_s=settings.worker.load_timeout_s,
                max_rows=settings.worker.max_rows,
            ),
            pool=pool_wishes(settings),
        )


class Hub:
    """Answers chats with the models of this machine; `start` it before and `close` it after, or use `async with`.

    `on_death` is told of each process that dies, or cannot start, with its last words; `on_words` of every line that
    a model's process writes on stderr. `reload` reads the settings anew, when their file has changed.
    """

    def __init__(
        self,
        settings: HubSettings,
        on_death: OnDeath = ignore,
        on_words: OnWords = ignore,
        reload: Reload | None = None,
    ) -> None:
        cache = settings.home / "cache"
        worker = msgspec.structs.replace(settings.worker, scratch=cache / "worker", verdicts=cache / "kv-stores")
        self._router = Router(settings.home)
        self._prep = Prep(settings.prep, on_death)
        self._families = Families(self._prep)
        ledger = LedgerFile(settings.home)
        parts = Parts(
            launcher=Workers(worker, on_death, on_words),
            ledger=ledger,
            estimate=partial(estimate_files, max_rows=worker.max_rows),
            on_trouble=on_death,
        )
        self._pool = Pool(settings.pool.options, parts)
        self.orders = PoolOrders(self._pool, self._router, on_death)
        self._settings = settings
        self._reload = reload
        self._access: HubAccess | None = None
        self._opening_access = asyncio.Lock()
        self._unready: str | None = "mlxm is starting"

    async def start(self) -> None:
        """Start what requests will need; when some of it cannot, `ready` says so, and it is tried again."""
        await self._prep.start()
        await self._prep.tried()
        self.orders.start(self._settings.pool, self._settings.home / CONFIG_NAME, self._reload)
        self._unready = None

    async def close(self) -> None:
        """End every process; requests that are not complete fail with Draining."""
        self._unready = "mlxm is stopping"
        if self._access is not None:
            await self._access.close()
        await self.orders.close()
        await self._pool.close()
        await self._prep.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def ready(self) -> str | None:
        """Why requests cannot be served now, or None."""
        return self._prep.ready() if self._unready is None else self._unready

    def models(self) -> tuple[str, ...]:
        """The names that requests may use. Blocks."""
        return self._router.names()

    async def downloads(self) -> Downloads:
        """What fetches models; made when first asked for, because what speaks to the Hub is slow to import."""
        async with self._opening_access:
            if self._access is None:
                self._access = await asyncio.to_thread(_open_access)
        return self._access.downloads

    async def chat(self, request: ChatRequest, *, may_be_path: bool = False) -> AsyncGenerator[Event, None]:
        """Answer `request`: Started first, Ended last; closing it early cancels the request.

        `may_be_path` lets the model be a folder; it is for callers on this machine alone.
        """
        model = await self._router.resolve(request.model, may_be_path=may_be_path)
        if request.grammar is not None:
            await self._prep.vet(request.grammar)
        prompt = await self._render(model, request)
        _check_room(model, len(prompt.ids), request.max_tokens)
        chat = Chat(request, prompt, await self._families.of(model.folder))
        order = await self._chat_order(model, request, chat, prompt.ids)
        async with aclosing(self._generate(model, order, chat.begin, is_split=chat.has_markup)) as events:
            async for event in events:
                for each in chat.see(event):
                    yield each

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Event, None]:
        """Go on with a prompt as it is: Started first, Ended last; closing it early cancels the request."""
        model = await self._router.resolve(request.model)
        if request.grammar is not None:
            await self._prep.vet(request.grammar)
        prompt = await self._read_prompt(model, request)
        _check_room(model, len(prompt.ids), request.max_tokens, param="prompt")
        echo = Echo(request, prompt)
        async with aclosing(self._generate(model, echo.order(_order(request, prompt.ids)))) as events:
            async for event in events:
                for each in echo.see(event):
                    yield each

    async def list_models(self) -> tuple[ModelInfo, ...]:
        """Every model that can be asked, by every name."""
        return tuple(map(self._with_state, await asyncio.to_thread(self._router.listing)))

    async def find_model(self, name: str) -> ModelInfo:
        """The model of a name; raises ModelNotFound with near names, and ModelBroken."""
        return self._with_state(await self._router.find(name))

    async def tokenize(self, request: ChatRequest | CompletionRequest, *, is_bare: bool = False) -> Encoded:
        """The tokens of a request's prompt; `is_bare` leaves out those that the tokenizer puts before a text."""
        model = await self._router.resolve(request.model)
        if isinstance(request, ChatRequest):
            ids = (await self._render(model, request)).ids
        elif isinstance(request.prompt, str):
            ids = await self._prep.encode(model.folder, request.prompt, suffix=request.suffix, is_bare=is_bare)
        else:
            ids = request.prompt
        return Encoded(ids=ids, context_length=model.context_length)

    async def detokenize(self, model: str, ids: tuple[int, ...]) -> str:
        """The text of token ids; raises InvalidRequest for what is no token of the model."""
        return await self._prep.decode((await self._router.resolve(model)).folder, ids)

    async def _render(self, model: LocalModel, request: ChatRequest) -> Tokens:
        return await self._prep.render_chat(model.folder, request)

    async def _chat_order(
        self, model: LocalModel, request: ChatRequest, chat: Chat, prompt_ids: tuple[int, ...]
    ) -> Generate:
        """What to ask of the model; what it has to keep to is looked at before it gets there."""
        grammar = chat.grammar()
        if grammar is not None and grammar != request.grammar:
            try:
                await self._prep.vet(grammar)
            except InvalidRequest as error:
                param = "tools" if request.grammar is None else error.param
                raise InvalidRequest(error.message, hint=error.hint, param=param) from error
        closing = chat.closing()
        close_ids = () if closing is None else await self._prep.encode(model.folder, closing, is_bare=True)
        return chat.order(_order(request, prompt_ids), grammar, close_ids)

    async def _generate(
        self,
        model: LocalModel,
        order: Generate,
        begin: Callable[[RequestStream], None] = leave_alone,
        *,
        is_split: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """The events of an answer; what its reader was too slow for comes as one delta, or token by token."""
        async with aclosing(self._pool.generate(model, order, begin)) as frames:
            async for frame in frames:
                for part in frame.split() if is_split and isinstance(frame, Delta) else (frame,):
                    for event in _events(part, len(order.prompt_ids)):
                        yield event

    async def _read_prompt(self, model: LocalModel, request: CompletionRequest) -> Prompt:
        """The prompt as ids and as text; ids that came as such are looked at before they reach the model."""
        if isinstance(request.prompt, str):
            ids = await self._prep.encode(model.folder, request.prompt, suffix=request.suffix)
            if not ids:
                raise InvalidRequest("The prompt is empty.", param="prompt")
            return Prompt(ids=ids, text=request.prompt)
        if request.suffix is not None:
            raise InvalidRequest("suffix goes with a prompt that is a text.", param="suffix")
        try:
            text = await self._prep.decode(model.folder, request.prompt)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, param="prompt") from error
        return Prompt(ids=request.prompt, text=text)

    def _with_state(self, info: ModelInfo) -> ModelInfo:
        root = info.name if info.target is None else info.target
        loaded = {status.model for status in self._pool.models() if status.state == "ready"}
        return msgspec.structs.replace(info, is_loaded=root in loaded)


def pool_wishes(settings: Settings) -> Wishes:
    """The pool's part of all settings."""
    models = settings.models
    percent, num_bytes = parse_share(settings.memory.budget)
    reserve = settings.memory.reserve
    options = PoolOptions(
        memory=MemoryLimit(
            percent=percent, num_bytes=num_bytes, reserve_bytes=None if reserve == "auto" else parse_bytes(reserve)
        ),
        max_models=models.max if models.max > 0 else None,
        policy=models.policy,
        keep_alive_s=models.keep_alive_s if models.keep_alive_s > 0 else None,
        has_spare=settings.worker.spare,
        queue_s=models.queue_s,
        max_queued=models.max_queued,
    )
    return Wishes(options=options, preload=models.preload)


def _open_access() -> HubAccess:
    from mlxm.hub_access import HubAccess  # noqa: PLC0415  # as said in Hub.downloads

    return HubAccess.open()


def _order(request: AnswerOptions, prompt_ids: tuple[int, ...]) -> Generate:
    return Generate(
        request_id=request.request_id,
        prompt_ids=prompt_ids,
        sampling=request.sampling,
        max_tokens=request.max_tokens,
        stop=request.stop,
        stop_ids=request.stop_ids,
        num_choices=request.num_choices,
        priority=request.priority,
        num_logprobs=request.num_logprobs,
        grammar=request.grammar,
    )


def _check_room(model: LocalModel, num_prompt: int, max_tokens: int | None, *, param: str = "messages") -> None:
    """Refuse what the context cannot hold before a worker is asked; it knows best how much else there is room for."""
    asked = 1 if max_tokens is None else max_tokens
    if model.context_length is not None and num_prompt + asked > model.context_length:
        wanted = "" if max_tokens is None else f" and max_tokens asks for {max_tokens} more"
        raise ContextTooLong(
            f"The prompt has {num_prompt} tokens{wanted}, but the context of {model.name} holds "
            f"{model.context_length}.",
            hint="Shorten the conversation or lower max_tokens.",
            param=param,
        )


def _events(frame: RequestEvent, num_prompt: int) -> tuple[Event, ...]:
    """What a frame means to those who know no frames; raises what ended the request."""
    match frame:
        case RequestStarted():
            return (Started(prompt_tokens=num_prompt),)
        case Delta():
            return _delta_events(frame)
        case RequestEnded(fault=Fault() as fault):
            raise fault.error()
        case RequestEnded(cancelled=str(reason)) if reason != FINISHED:
            raise Cancelled(f"The request was cancelled: {reason}.")
        case RequestEnded():
            return (Ended(usage=frame.usage),)


def _delta_events(delta: Delta) -> tuple[Event, ...]:
    text = TextDelta(choice=delta.choice, text=delta.text, token_ids=delta.token_ids, logprobs=delta.logprobs)
    if delta.finish_reason is None:
        return (text,)
    return (text, ChoiceEnded(choice=delta.choice, reason=delta.finish_reason, stop=delta.stop))
