"""Sample kinds: small, typed at both ends, and one for each way a handler can run or fail."""

import asyncio
import hashlib
import os
import re
import signal
from collections import Counter
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from taskledger import Discard, TaskContext, task

_WORD: Final = re.compile(r"\w+(?:['’-]\w+)*")
_MOST_COMMON: Final = 10
_SAFE: Final = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""

SafeInteger = Annotated[int, Field(ge=-_SAFE, le=_SAFE)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SumPayload(_Strict):
    x: SafeInteger
    y: SafeInteger


class SumResult(BaseModel):
    sum: int


@task("sum", timeout_seconds=30)
async def add(payload: SumPayload) -> SumResult:
    total = payload.x + payload.y
    if abs(total) > _SAFE:
        raise Discard("the sum is beyond 2^53 - 1: a JSON reader may round it")
    return SumResult(sum=total)


class TextPayload(_Strict):
    text: str


class WordCount(BaseModel):
    word: str
    count: int


class TextStats(BaseModel):
    words: int
    lines: int
    characters: int
    most_common: list[WordCount]


@task("text_stats", timeout_seconds=60)
def text_stats(payload: TextPayload) -> TextStats:
    """In a thread: too long for the event loop, too short for a process. Case does not matter."""
    words = Counter(word.lower() for word in _WORD.findall(payload.text))
    # Equal counts in alphabetical order, so that a second run gives the same result.
    ranked = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    return TextStats(
        words=words.total(),
        lines=len(payload.text.splitlines()),
        characters=len(payload.text),
        most_common=[WordCount(word=word, count=count) for word, count in ranked[:_MOST_COMMON]],
    )


class Digest(BaseModel):
    hexdigest: str


@task("sha256", execution="process", timeout_seconds=60)
def sha256(payload: TextPayload) -> Digest:
    return Digest(hexdigest=hashlib.sha256(payload.text.encode()).hexdigest())


class TitlePayload(_Strict):
    title: Annotated[str, Field(min_length=1, max_length=255)]
    delay_seconds: Annotated[float, Field(ge=0, le=60)] = 3.0


class TitleOutcome(BaseModel):
    outcome: Literal["success"]


@task("title_check", timeout_seconds=90)
async def title_check(payload: TitlePayload) -> TitleOutcome:
    """What the service before this one computed: an odd length fails for good."""
    await asyncio.sleep(payload.delay_seconds)
    if len(payload.title) % 2:
        raise Discard("the title has an odd number of characters")
    return TitleOutcome(outcome="success")


class SleepPayload(_Strict):
    seconds: Annotated[float, Field(ge=0, le=3600)]


class Slept(BaseModel):
    slept_seconds: float


@task("sleep", timeout_seconds=3700)
async def sleep(payload: SleepPayload, ctx: TaskContext) -> Slept:
    """Reports its progress about once a second."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while (slept := loop.time() - began) < payload.seconds:
        ctx.progress(slept / payload.seconds)
        await asyncio.sleep(min(1.0, payload.seconds - slept))
    return Slept(slept_seconds=payload.seconds)


class FlakyPayload(_Strict):
    failures: Annotated[int, Field(ge=0, le=100)]


class FlakyResult(BaseModel):
    attempt: int


@task("flaky")
async def flaky(payload: FlakyPayload, ctx: TaskContext) -> FlakyResult:
    """Fails its first `failures` attempts, then succeeds."""
    if ctx.attempt <= payload.failures:
        raise RuntimeError(f"attempt {ctx.attempt} of {payload.failures} that fail")
    return FlakyResult(attempt=ctx.attempt)


class CrashPayload(_Strict):
    pass


@task("crash")
async def crash(_payload: CrashPayload) -> None:
    """Kills the process it runs in: the worker at first; after that loss, a child of its own."""
    os.kill(os.getpid(), signal.SIGKILL)
