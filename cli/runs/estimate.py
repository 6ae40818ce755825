"""What a whole run would cost, reckoned from a few previewed passages. Arithmetic alone: it asks nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.llm import Usage
from shared.records import RunConfig
from shared.settings import LLMSettings

SCORING_REQUESTS = 2  # per query: one list of prompts for QL, one for RC


@dataclass(frozen=True, slots=True)
class Sample:
    """What one previewed passage cost: its completions, and the scores of its queries against the passage itself.

    The seconds are of its requests, one after the other; `scored` of its `queries` got both scores.
    """

    generation: Usage
    generation_s: float
    queries: int
    scoring: Usage
    scoring_s: float
    scored: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one stage of a run, or of two after each other.

    It takes `least_s` where the endpoint answers as quickly with all allowed requests in flight as it did with the
    samples', and `most_s` where it gets no more done by having more in flight than those.
    """

    requests: float
    tokens: float
    least_s: float
    most_s: float

    def __add__(self, after: Cost) -> Cost:
        return Cost(
            self.requests + after.requests,
            self.tokens + after.tokens,
            self.least_s + after.least_s,
            self.most_s + after.most_s,
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """`relabel` is None where no previewed query was scored."""

    generate: Cost
    relabel: Cost | None


def estimate(samples: Sequence[Sample], passages: int, config: RunConfig, settings: LLMSettings) -> Estimate:
    """A run over `passages` passages that are like the samples, with candidates that are as long as the seed passage.

    The samples are taken to have been measured side by side, and a list of prompts to last as long as its prompts one
    after the other. Where a cap per minute makes a stage longer, it counts.
    """
    scale = passages / len(samples)
    generation = sum((sample.generation for sample in samples), start=Usage())
    busy_s = sum(sample.generation_s for sample in samples)
    generate = _cost(generation.requests * scale, generation.tokens * scale, busy_s * scale, len(samples), settings)
    scored = sum(sample.scored for sample in samples)
    if not scored:
        return Estimate(generate, None)
    queries = scale * sum(sample.queries for sample in samples)
    pairs_per_scored = queries * config.num_candidates / scored
    tokens = sum(sample.scoring.tokens for sample in samples) * pairs_per_scored
    scoring_s = sum(sample.scoring_s for sample in samples) * pairs_per_scored
    side_by_side = SCORING_REQUESTS * sum(sample.scored > 0 for sample in samples)
    return Estimate(generate, _cost(SCORING_REQUESTS * queries, tokens, scoring_s, side_by_side, settings))


def _cost(requests: float, tokens: float, busy_s: float, side_by_side: int, settings: LLMSettings) -> Cost:
    if not settings.base_urls:  # a model in this process: one call at a time, while the others wait, and no caps
        return Cost(requests, tokens, busy_s / side_by_side, busy_s / side_by_side)
    endpoints = len(settings.base_urls)
    in_flight = settings.max_parallel_requests * endpoints
    caps = ((requests, settings.max_requests_per_minute), (tokens, settings.max_tokens_per_minute))
    capped_s = max(60 * amount / (per_minute * endpoints) if per_minute else 0.0 for amount, per_minute in caps)
    least_s, most_s = busy_s / in_flight, busy_s / min(in_flight, side_by_side)
    return Cost(requests, tokens, max(least_s, capped_s), max(most_s, capped_s))
