"""The progress of a rebuild, for people: one line that is written over and over."""

import time
from collections.abc import Callable
from typing import Final, TextIO

_WIDTH: Final = 20


class Meter:
    """A projector.filling.Progress. The rate is that of this run: what an earlier one had folded already
    shows in the bar alone."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._began: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if self._began is None or done < self._began[1]:
            self._began = now, done
        since, first = self._began
        rate = (done - first) / max(now - since, 0.001)
        share = done / max(total, 1)
        bar = "#" * int(share * _WIDTH)
        left = f"{rate:,.0f}/s, {_duration((total - done) / rate)} left" if rate else "…"
        line = f"[{bar:.<{_WIDTH}}] {share:4.0%}  {done:,} of {total:,} events, {left}"
        end = "\n" if done >= total else ""
        self._out.write(f"\r{line:<78}{end}")
        self._out.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
