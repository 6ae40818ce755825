"""The bare client that Fretwork is measured by: the same requests, as fast as asyncio and aiohttp send them.

python -m benchmarks.bare BASE_URL BODIES CONCURRENCY    BODIES: a file with one JSON body of /v1/completions a line

It keeps one session, at most CONCURRENCY requests in flight, and decodes every answer with orjson. Prints one JSON
object: how long it took, and what it cost.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import aiohttp
import orjson


async def _send_all(url: str, bodies: list[bytes], concurrency: int) -> dict[str, float]:
    left = iter(bodies)
    tokens = 0

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal tokens
        for body in left:
            async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
                usage = orjson.loads(await answer.read())["usage"]
            tokens += usage["prompt_tokens"] + usage["completion_tokens"]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        started, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(worker(session) for _ in range(concurrency)))
        wall_s = time.perf_counter() - started
    return {"wall_s": wall_s, "cpu_s": time.process_time() - cpu, "tokens": tokens}


def main() -> None:
    base_url, bodies, concurrency = sys.argv[1:]
    told = asyncio.run(_send_all(f"{base_url}/completions", Path(bodies).read_bytes().splitlines(), int(concurrency)))
    sys.stdout.write(orjson.dumps(told).decode() + "\n")


if __name__ == "__main__":
    main()
