"""The vector index: the only importer of qdrant_client.

A point has a dense vector. In the passages' collection of a hybrid run it has a sparse one beside it, of its words.

A Qdrant server where FRETWORK_QDRANT_URL names one; otherwise Qdrant's local mode inside this process, which holds all
vectors in memory, searches by brute force and locks its folder, so one call at a time and one process.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, lru_cache
from uuid import UUID

import httpx  # what qdrant_client's errors come from
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from services.retriever.embed import Vectors
from services.retriever.lexical import Postings, Weights
from services.retriever.neighbours import DECIMALS, Neighbour
from shared.errors import TooSlowError, TransientError
from shared.models import model_fingerprint
from shared.runs import Run
from shared.settings import settings

_lock = threading.RLock()  # for the local mode alone: a server takes calls side by side

LEXICAL = "lexical"  # the sparse vector's name; the dense one has none
TIMEOUT_S = 60  # of one call
# What one call holds: searches that end in time over millions of passages, points that a server takes (32 MB of JSON).
SEARCHES = 32
POINTS = 256
SPARE = 8  # points fetched beyond those asked for, to see where equal scores end


_DENSE = ""  # Qdrant's name for the vector that has none
_Query = list[float] | models.SparseVector


@cache
def _client() -> QdrantClient:
    url = settings().qdrant_url
    if url is not None:
        return QdrantClient(url=url, timeout=TIMEOUT_S)
    folder = settings().home / "qdrant"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return QdrantClient(path=str(folder))
    except RuntimeError as error:
        raise TransientError(
            f"the local Qdrant in {folder} is held by another process; one retriever serves a local Qdrant: "
            "set FRETWORK_QDRANT_URL to run several"
        ) from error


def open_index() -> None:
    """Opens the index. Raises TransientError where the local one is held by another process."""
    _client()


@contextmanager
def _qdrant(*, by_the_shard: bool = False) -> Iterator[QdrantClient]:
    """The client for the calls of the block. What a server in trouble causes is a TransientError.

    With `by_the_shard`, where a smaller shard asks for less, a call that takes too long while the server answers others
    is a TooSlowError.
    """
    with _lock if settings().qdrant_url is None else nullcontext():
        try:
            yield _client()
        except ResponseHandlingException as error:
            if by_the_shard and isinstance(error.source, httpx.ReadTimeout) and _answers():
                raise TooSlowError(f"Qdrant answers, but took longer than {TIMEOUT_S} s over a call") from error
            raise TransientError(f"Qdrant did not answer: {error}") from error
        except ResourceExhaustedResponse as error:  # 429 with a time to wait
            raise TransientError(f"Qdrant cannot answer now: {error}") from error
        except UnexpectedResponse as error:
            if by_the_shard and error.status_code == 408:  # a limit of the server's own
                raise TooSlowError(f"Qdrant took longer than it allows for a call: {error}") from error
            if error.status_code in (408, 429) or (error.status_code or 0) >= 500:
                raise TransientError(f"Qdrant cannot answer now: {error}") from error
            raise


def _answers() -> bool:
    """Whether the server answers a call that costs it nothing."""
    try:
        _client().info()
    except (QdrantException, ResponseHandlingException, UnexpectedResponse):
        return False
    return True


def passages_collection(run: Run) -> str:
    """Named by what the corpus held, the embedder, and whether words are in it as well as vectors.

    So a run sees exactly the passages that it was started on. Not by the corpus's version: its number comes again, with
    other passages, where a database is restored or made anew.
    """
    embedder = hashlib.sha256(model_fingerprint(run.config.embedder).encode()).hexdigest()[:8]
    suffix = f"_{LEXICAL}" if run.config.candidates == "hybrid" else ""
    return f"passages_{run.corpus_hash[:24]}_{embedder}{suffix}"


def queries_collection(run: Run) -> str:
    return f"queries_{run.run_id.hex}"


def ensure(collection: str, dimension: int, *, lexical: bool = False) -> None:
    """Makes the collection where it is not there yet; `lexical`: with a sparse vector beside the dense one."""
    with _qdrant() as client:
        if not client.collection_exists(collection):
            # two workers may both come here: the server refuses the second, and that is fine
            try:
                client.create_collection(
                    collection,
                    models.VectorParams(size=dimension, distance=models.Distance.COSINE),
                    sparse_vectors_config={LEXICAL: models.SparseVectorParams()} if lexical else None,
                )
            except Exception:
                if not client.collection_exists(collection):
                    raise


def missing(collection: str, ids: Sequence[UUID]) -> list[UUID]:
    """The ids that have no point yet, in the order given."""
    with _qdrant() as client:
        found = client.retrieve(collection, [str(id_) for id_ in ids], with_payload=False, with_vectors=False)
    present = {str(point.id) for point in found}
    return [id_ for id_ in ids if str(id_) not in present]


def count(collection: str) -> int:
    with _qdrant() as client:
        if not client.collection_exists(collection):
            return 0
        return client.count(collection, exact=True).count


def upsert(collection: str, ids: Sequence[UUID], vectors: Vectors, lexical: Sequence[Weights] | None = None) -> None:
    """Stores vectors `(N, D)`, and sparse ones where the collection has them; doing it twice changes nothing."""
    for start in range(0, len(ids), POINTS):
        part = slice(start, start + POINTS)
        dense = vectors[part].tolist()
        stored: models.BatchVectorStruct = dense
        if lexical is not None:
            stored = {_DENSE: dense, LEXICAL: [_sparse(weights) for weights in lexical[part]]}
        with _qdrant(by_the_shard=True) as client:
            client.upsert(collection, models.Batch(ids=[str(id_) for id_ in ids[part]], vectors=stored), wait=True)


def _sparse(weights: Weights) -> models.SparseVector:
    return models.SparseVector(indices=list(weights), values=list(weights.values()))


def vectors_of(collection: str, ids: Sequence[UUID]) -> dict[UUID, list[float]]:
    """The dense vectors, unit vectors `(D,)`, of those of the points that are there."""
    with _qdrant() as client:
        found = client.retrieve(collection, [str(id_) for id_ in ids], with_payload=False, with_vectors=True)
    # a point with a sparse vector as well has both by their names
    vectors = {
        UUID(str(point.id)): point.vector[_DENSE] if isinstance(point.vector, dict) else point.vector for point in found
    }
    return {id_: vector for id_, vector in vectors.items() if isinstance(vector, list)}  # type: ignore[misc]


def nearest(collection: str, vectors: Sequence[Sequence[float]], limit: int, deadline: float) -> list[list[Neighbour]]:
    """For each vector the `limit` nearest points by exact search: id and cosine rounded to 1e-5, best first.

    Equal scores are ordered by id. Where the cut falls among equal scores all of them are fetched, so that it is the
    ids that decide, and not the order in which Qdrant came upon them.

    Raises TooSlowError once `deadline`, in seconds of time.monotonic(), is over.
    """
    return _nearest(collection, [list(vector) for vector in vectors], limit, deadline)


def nearest_by_words(collection: str, queries: Sequence[Weights], limit: int, deadline: float) -> list[list[Neighbour]]:
    """For each query the `limit` points of the highest BM25, ordered as `nearest` has them.

    A point that shares no word with the query is none of them. Raises TooSlowError as `nearest` does.
    """
    if settings().qdrant_url is None:
        with _qdrant() as client:
            postings = _postings(client, collection, client.count(collection, exact=True).count)
        return [postings.nearest(query, limit) for query in queries]
    asked = [query for query in queries if query]
    found = iter(_nearest(collection, [_sparse(query) for query in asked], limit, deadline, LEXICAL))
    return [next(found) if query else [] for query in queries]


@lru_cache(maxsize=4)
def _postings(client: QdrantClient, collection: str, count: int) -> Postings:
    """The words of a local collection's `count` points, read once: Qdrant's local mode would go through all of them,
    one by one, for each query. Points are added and never changed, so that their number tells whether there are more.
    """
    points, _ = client.scroll(collection, limit=max(count, 1), with_payload=False, with_vectors=[LEXICAL])
    weights: dict[UUID, Weights] = {}
    for point in points:
        vector = point.vector[LEXICAL]  # type: ignore[call-overload, index]
        assert isinstance(vector, models.SparseVector)  # noqa: S101 - the collection was made so
        weights[UUID(str(point.id))] = dict(zip(vector.indices, vector.values, strict=True))
    return Postings(weights)


def _nearest(
    collection: str, queries: Sequence[_Query], limit: int, deadline: float, using: str | None = None
) -> list[list[Neighbour]]:
    found = _search(collection, queries, limit + SPARE, deadline, using=using)
    for index, query in enumerate(queries):
        wanted = limit + SPARE
        while len(found[index]) == wanted and found[index][-1][1] == found[index][limit - 1][1]:
            wanted *= 8
            (found[index],) = _search(collection, [query], wanted, deadline, using=using)
    return [neighbours[:limit] for neighbours in found]


def within(collection: str, vector: Sequence[float], limit: int, cosine: float, deadline: float) -> list[Neighbour]:
    """The nearest points, `limit` at most, that have at least this cosine; ordered as `nearest` has them.

    Where there are more, which of the last of equal scores are among them is left to Qdrant.
    Raises TooSlowError as `nearest` does.
    """
    return _search(collection, [list(vector)], limit, deadline, score_threshold=cosine)[0]


def _search(
    collection: str,
    queries: Sequence[_Query],
    limit: int,
    deadline: float,
    *,
    score_threshold: float | None = None,
    using: str | None = None,
) -> list[list[Neighbour]]:
    requests = [
        models.QueryRequest(
            query=query,
            using=using,
            limit=limit,
            score_threshold=score_threshold,
            params=models.SearchParams(exact=True),
        )
        for query in queries
    ]
    answers: list[models.QueryResponse] = []
    for start in range(0, len(requests), SEARCHES):
        if time.monotonic() > deadline:
            raise TooSlowError("the searches of this shard take longer than a shard may")
        with _qdrant(by_the_shard=True) as client:
            answers += client.query_batch_points(collection, requests[start : start + SEARCHES])
    return [
        sorted(
            ((UUID(str(point.id)), round(point.score, DECIMALS)) for point in answer.points),
            key=lambda pair: (-pair[1], pair[0]),
        )
        for answer in answers
    ]
