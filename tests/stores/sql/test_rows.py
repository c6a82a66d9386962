"""Events as rows."""

from __future__ import annotations

import gc
from datetime import UTC, datetime, timedelta, timezone
from random import Random

import pytest

from asm_runtime import Event
from asm_runtime.errors import ValidationError
from asm_runtime.stores.sql.rows import drafted, drafted_few, event_row, event_rows, large_drafted

TIMES = [
    datetime.min.replace(tzinfo=UTC),
    datetime.max.replace(tzinfo=UTC),
    datetime(2024, 1, 1, tzinfo=UTC),
    datetime(2024, 1, 1, 12, 0, 0, 1, tzinfo=timezone(timedelta(hours=5, minutes=30))),
]


def log(random: Random, count: int) -> list[Event]:
    return [
        Event.new(
            type=random.choice(("custom", "message_streamed")),
            session_id=random.choice(("s", "ü\"\\,'")),
            run_id=random.choice((None, "r")),
            timestamp=random.choice((None, *TIMES)),
            data=random.choice(({}, {"a": "é\n"}, {"a": [1, None, {"b": 1.5}]})),
            metadata=random.choice((None, {"trace": "t"})),
            schema_version=random.choice((1, 2)),
            provider=random.choice((None, "p")),
            correlation_id=random.choice((None, "c")),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_several_events_become_the_rows_that_each_becomes_alone(seed: int) -> None:
    random = Random(seed)
    events = log(random, random.randrange(1, 20))
    assert drafted_few(events) == [drafted(event) for event in events] == [*map(large_drafted, events)]
    canonical = [event.checked() for event in events]
    assert event_rows(canonical) == [event_row(event) for event in canonical]


def test_the_event_of_a_row_is_a_copy_with_payloads_of_its_own() -> None:
    events = log(Random(0), 9)
    for event, row in zip(events, drafted_few(events), strict=True):
        copy = row[-1]
        assert copy == event
        assert copy is not event
        assert copy.data is not event.data
        assert copy.metadata is not event.metadata


def test_one_among_several_that_is_not_allowed_is_refused() -> None:
    events = [*log(Random(0), 3), Event.new(type="custom", session_id="s").replace(id="")]
    with pytest.raises(ValidationError, match="id must be"):
        drafted_few(events)


def test_the_garbage_collector_passes_by_what_is_on_its_way_into_the_log() -> None:
    rows = drafted_few(log(Random(0), 9))
    gc.collect()
    assert not any(map(gc.is_tracked, rows))
