"""The leases of one process, on a real ledger: what one of its threads lets go is not what another holds."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from shared import lease, ledger
from shared.stages import Stage
from tests.one_process import services_on
from tests.servers import until

LEASE_S = 1.0


def test_a_thread_that_lost_its_shard_leaves_the_lease_of_the_one_that_has_it_now(
    database_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRETWORK_LEASE_S", str(LEASE_S))
    item = UUID(int=7)
    with services_on(database_url, broker_url, tmp_path) as engine, ExitStack() as late, ExitStack() as prompt:
        with engine.begin() as connection:
            (shard_id,) = ledger.add_shards(connection, None, Stage.EVALUATE, [[item]], parent=item)

        def hold(thread: ExitStack, lease_s: float) -> None:
            with engine.begin() as connection:
                held = ledger.claim(connection, shard_id, "this process", lease_s)
            assert held is not None
            thread.enter_context(lease.kept(held))

        hold(late, lease_s=0)
        with engine.begin() as connection:
            assert ledger.reap(connection) == [shard_id]
        hold(prompt, LEASE_S)
        late.close()
        assert lease.in_hand() == 1

        def ends_at() -> datetime:
            with engine.connect() as connection:
                found: datetime = connection.execute(text("SELECT lease_expires_at FROM shards")).scalar_one()
            return found

        before = ends_at()
        lease.consumed("trainer")
        until(lambda: ends_at() > before, 10)
        prompt.close()
        assert lease.in_hand() == 0
