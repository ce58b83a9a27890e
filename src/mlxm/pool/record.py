"""What is remembered of a model while its workers come and go: how it is to be kept, its use, what went wrong."""

from __future__ import annotations

from collections import deque
from statistics import median

from mlxm.errors import MlxmError, ModelBroken, OutOfMemory, Unavailable
from mlxm.pool.options import LocalModel, PoolOptions

_NUM_TTFTS = 128


class Record:
    """One model's memory; times are those of the event loop's clock."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model: LocalModel | None = None
        """As it was loaded last, or is to be."""
        self.is_pinned = False
        self.is_preloaded = False
        self.ttl_s: float | None = None
        """None: as the pool's options say."""
        self.context: int | None = None
        self.num_uses = 0
        self.last_used_s = 0.0
        self.failure: MlxmError | None = None
        self.is_broken = False
        self._num_failures = 0
        self._retry_at_s = 0.0
        self._deaths: deque[float] = deque()
        self._ttfts: deque[float] = deque(maxlen=_NUM_TTFTS)

    @property
    def stays(self) -> bool:
        """Whether it is never evicted."""
        return self.is_pinned or self.is_preloaded

    def keep_alive_s(self, options: PoolOptions) -> float | None:
        """How long it stays unused; None: until others need its memory."""
        if self.stays:
            return None
        return options.keep_alive_s if self.ttl_s is None else self.ttl_s

    @property
    def ttft_p50_s(self) -> float | None:
        """How long the first token usually took lately."""
        return median(self._ttfts) if self._ttfts else None

    def answered(self, ttft_s: float) -> None:
        """Note how long a first token took."""
        self._ttfts.append(ttft_s)

    def used(self, now_s: float) -> None:
        """Note that somebody uses it."""
        self.num_uses += 1
        self.last_used_s = now_s

    # ── what went wrong ──────────────────────────────────────────────────────────────────────────

    def check(self, now_s: float) -> None:
        """Raise what went wrong before, as long as it is not to be tried again."""
        if self.failure is None or not (self.is_broken or now_s < self._retry_at_s):
            return
        error = self.failure
        if self.is_broken:
            raise ModelBroken(error.message, hint=error.hint, param="model")
        wait_s = self._retry_at_s - now_s if isinstance(error, Unavailable) else error.retry_after_s
        raise type(error)(error.message, hint=error.hint, param=error.param, retry_after_s=wait_s)

    def may_retry(self, now_s: float) -> bool:
        """Whether it is time to try again by ourselves."""
        return not self.is_broken and now_s >= self._retry_at_s

    def failed(self, error: MlxmError, now_s: float, options: PoolOptions) -> None:
        """A load has failed: the next one waits longer each time."""
        self.failure = error
        self._retry_at_s = now_s + _backoff_s(options.retry_s, self._num_failures, options.max_retry_s)
        if not isinstance(error, OutOfMemory):  # which is nobody's fault, and may pass any moment
            self._num_failures += 1

    def died(self, error: MlxmError, now_s: float, options: PoolOptions) -> float | None:
        """Its worker has died: in how many seconds to start another one, or None when it has died too often."""
        self._deaths.append(now_s)
        while self._deaths[0] < now_s - options.death_window_s:
            self._deaths.popleft()
        num = len(self._deaths)
        if num >= options.max_deaths:
            self.is_broken = True
            hint = f"Look into the log, then: mlxm restart {self.name}"
            self.failure = ModelBroken(f"{self.name} is broken, it died {num} times. {error.message}", hint=hint)
            return None
        return 0.0 if num == 1 else _backoff_s(options.restart_s, num - 2, options.max_retry_s)

    def loaded(self) -> None:
        """A load has succeeded; earlier deaths still count for a while."""
        self.failure = None
        self._num_failures = 0

    def forgive(self) -> None:
        """Somebody wants it to be tried again."""
        self.loaded()
        self.is_broken = False
        self._retry_at_s = 0.0
        self._deaths.clear()


def _backoff_s(first_s: float, num_before: int, most_s: float) -> float:
    return float(min(first_s * 2 ** min(num_before, 32), most_s))
