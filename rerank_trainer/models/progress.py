"""Progress: how many pairs are scored, how many a second, and the time left."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

# From this many pairs on the user waits long enough to want a progress bar.
MANY_PAIRS = 1000


class PairProgress:
    """A progress bar of pairs, for use in ``with``.

    Long rows run first, so that counting rows would promise too long a wait. Within a chunk of pairs, the share of its
    tokens that has run counts; chunks follow each other in the order given, whose lengths are mixed. The pairs a second
    are the mean since the start, of which the time left follows.

    Args:
        num_pairs: All pairs; None where nobody knows.
        show: Whether to show the bar; None shows it from a thousand pairs on, and where nobody knows how many.
        description: What stands before the bar.
    """

    def __init__(self, num_pairs: int | None, *, show: bool | None = None, description: str = "Scoring") -> None:
        shown = num_pairs is None or num_pairs > MANY_PAIRS if show is None else show
        # where it is shown, tqdm may still be told otherwise by its own TQDM_DISABLE
        options: dict[str, Any] = {} if shown else {"disable": True}
        self._bar = tqdm(total=num_pairs, unit="pair", desc=description, smoothing=0, **options)
        self._done = 0  # pairs of the chunks that are over
        self._chunk = (0, 0)  # pairs and tokens of the one that runs
        self._num_run = 0  # tokens of it that have run

    def __enter__(self) -> PairProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, num_pairs: int, num_tokens: int = 0) -> None:
        """A chunk of so many pairs begins; its distinct ones have so many tokens."""
        self._chunk, self._num_run = (num_pairs, num_tokens), 0

    def ran(self, num_tokens: int) -> None:
        """So many more tokens of the chunk have run, padding included: so the share is a little too high, at most 1."""
        self._num_run += num_tokens
        num_pairs, num_all = self._chunk
        self._show(self._done + int(num_pairs * min(1.0, self._num_run / max(1, num_all))))

    def end(self) -> None:
        """The chunk is over."""
        self._done += self._chunk[0]
        self._chunk = (0, 0)
        self._show(self._done)

    def skip(self, num_pairs: int) -> None:
        """So many pairs had been scored before: they say nothing about the speed."""
        if not self._bar.disable:
            self._bar.initial += num_pairs
        self._done += num_pairs
        self._show(self._done)

    def _show(self, done: int) -> None:
        self._bar.update(done - self._bar.n)
