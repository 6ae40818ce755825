"""How many calls an endpoint bears at once, learned from how it answers: pure, the clock is the caller's.

Growth is TCP's: one more per answer (doubling each round trip) below a threshold, one more per round trip above it, and
only while the limit is really used. A refusal (429, 503) or a queue that grows at the server shrinks it to 0.7, at most
once per round trip. Between the two it holds: while calls wait at the server, and while answers take more than twice
their baseline.

The baseline is each kind of call's mean latency while the endpoint is calm. It follows slow drifts only, or a queue
that grows slowly would carry it along. Where the limit has to hold for several windows of answers, a trial tells why:
with half the calls in flight a queue of our own making is half as long, and the limit shrinks; an endpoint that is
about as slow as before has become slower for good (or the prompts longer), and that is its baseline from now on.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

START = 16
SHRINK = 0.7
HOLD_ABOVE = 2.0  # times the baseline
CALM_BELOW = 1.3
DRIFT = 0.02  # of the distance to the latest window's mean
TRIAL_CUT = 0.5
TRIAL_QUEUE_BELOW = 0.65  # of the latency before the cut: 0.5 where it was all queue, 1 where none of it was
TRIAL_WINDOWS = 4
TRIAL_SKIPS = 2  # windows that still hold calls from before the cut
TRIAL_EVERY_S = 5.0
QUEUE_ABOVE = 0.1  # of the limit: fewer wait for the server's next step, and not in a queue
LEARNED_FROM = 16  # answers; a window is never shorter


@dataclass(slots=True)
class _Latencies:
    answers: int = 0
    total_s: float = 0.0


@dataclass(slots=True)
class _Baseline:
    mean_s: float = 0.0
    answers: int = 0

    def learn(self, latencies: _Latencies) -> None:
        self.answers += latencies.answers
        step = max(DRIFT, latencies.answers / self.answers)
        self.mean_s += (latencies.total_s / latencies.answers - self.mean_s) * step


@dataclass(slots=True)
class _Against:
    """Measured latency against the baselines, over some windows."""

    windows: int = 0
    measured_s: float = 0.0
    expected_s: float = 0.0

    def add(self, measured_s: float, expected_s: float) -> None:
        self.windows += 1
        self.measured_s += measured_s
        self.expected_s += expected_s

    @property
    def ratio(self) -> float:
        return self.measured_s / self.expected_s


@dataclass(slots=True)
class _Trial:
    ratio: float
    limit: float
    skips: int = TRIAL_SKIPS
    against: _Against = field(default_factory=_Against)


@dataclass(slots=True)
class Limit:
    """The number of calls that may be in flight at one endpoint: `value`, from 1 to `most`."""

    most: int
    _limit: float = field(init=False)
    _threshold: float = field(init=False)
    _baselines: dict[Hashable, _Baseline] = field(init=False, default_factory=dict)
    _window: dict[Hashable, _Latencies] = field(init=False, default_factory=dict)
    _window_left: int = field(init=False, default=LEARNED_FROM)
    _ratio: float = field(init=False, default=1.0)
    _held: _Against = field(init=False, default_factory=_Against)
    _trial: _Trial | None = field(init=False, default=None)
    _trial_at: float = field(init=False, default=float("-inf"))
    _waiting: float = field(init=False, default=0.0)
    _shrunk_at: float = field(init=False, default=float("-inf"))
    _answered_since: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        self._limit = float(min(START, self.most))
        self._threshold = float("inf")

    @property
    def value(self) -> int:
        return int(self._limit)

    def answered(self, kind: Hashable, latency_s: float, in_flight: int, now: float) -> None:
        """An answer came; `in_flight` counts its call too. `kind` groups calls that take about the same time."""
        self._answered_since = True
        latencies = self._window.get(kind)
        if latencies is None:
            latencies = self._window[kind] = _Latencies()
        latencies.answers += 1
        latencies.total_s += latency_s
        if (
            in_flight >= 0.8 * self.value
            and self._limit < self.most
            and self._ratio <= HOLD_ABOVE
            and not self._waiting
            and self._trial is None
        ):
            step = 1.0 if self._limit < self._threshold else 1.0 / self._limit
            self._limit = min(self._limit + step, float(self.most))
        self._window_left -= 1
        if self._window_left <= 0:
            self._end_window(now)

    def refused(self, sent_at: float, now: float) -> bool:
        """The endpoint says that it is too much. False for a call from before the latest shrinking: it knew no better.

        A storm, with no answer between two refusals, lowers the limit but not the threshold, so that what was borne
        before is reached again soon after.
        """
        if sent_at < self._shrunk_at:
            return False
        self._trial = None
        self._shrink(now, lower_threshold=self._answered_since)
        self._answered_since = False
        return True

    def queued(self, waiting: float, now: float) -> None:
        """How many requests wait inside the server by its own count, whoever sent them."""
        waiting = waiting if waiting > QUEUE_ABOVE * self._limit else 0.0
        grew = waiting > self._waiting > 0
        self._waiting = waiting
        if grew and self._trial is None:
            self._shrink(now, lower_threshold=True)

    def _shrink(self, now: float, *, lower_threshold: bool) -> None:
        self._limit = max(1.0, self._limit * SHRINK)
        self._shrunk_at = now
        if lower_threshold:
            self._threshold = self._limit

    def _end_window(self, now: float) -> None:
        window, self._window = self._window, {}
        self._window_left = max(LEARNED_FROM, self.value)
        known: list[tuple[_Baseline, _Latencies]] = []
        for kind, latencies in window.items():
            baseline = self._baselines.setdefault(kind, _Baseline())
            if baseline.answers >= LEARNED_FROM:
                known.append((baseline, latencies))
            else:
                baseline.learn(latencies)
        if known:
            measured_s = sum(latencies.total_s for _, latencies in known)
            expected_s = sum(latencies.answers * baseline.mean_s for baseline, latencies in known)
            if self._trial is not None:
                self._try_on(self._trial, measured_s, expected_s, now)
            else:
                self._judge(measured_s, expected_s, now)
                if self._ratio < CALM_BELOW:
                    for baseline, latencies in known:
                        baseline.learn(latencies)

    def _judge(self, measured_s: float, expected_s: float, now: float) -> None:
        self._ratio = measured_s / expected_s
        if self._ratio <= HOLD_ABOVE:
            self._held = _Against()
            return
        self._held.add(measured_s, expected_s)
        if self._held.windows >= TRIAL_WINDOWS and now - self._trial_at > TRIAL_EVERY_S and self._limit > 1:
            self._trial = _Trial(self._held.ratio, self._limit)
            self._limit = max(1.0, self._limit * TRIAL_CUT)

    def _try_on(self, trial: _Trial, measured_s: float, expected_s: float, now: float) -> None:
        if trial.skips:
            trial.skips -= 1
            return
        trial.against.add(measured_s, expected_s)
        if trial.against.windows < TRIAL_WINDOWS:
            return
        self._limit = trial.limit
        if trial.against.ratio < TRIAL_QUEUE_BELOW * trial.ratio:
            self._shrink(now, lower_threshold=True)
        else:
            for baseline in self._baselines.values():
                baseline.mean_s *= trial.ratio
        self._trial, self._trial_at, self._held, self._ratio = None, now, _Against(), 1.0
