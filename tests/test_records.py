from __future__ import annotations

import gc
import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asm_runtime.errors import InvalidTransition, ValidationError
from asm_runtime.records import (
    OPEN_RUN_STATUSES,
    TERMINAL_EVENT_TYPES,
    Artifact,
    Event,
    EventType,
    Fence,
    Run,
    RunStatus,
    Session,
    SessionStatus,
)

Record = Session | Run | Event | Artifact

SESSION_STEPS = {
    "pending": {"active", "cancelled", "failed"},
    "active": {"paused", "completed", "failed", "cancelled"},
    "paused": {"active", "completed", "failed", "cancelled"},
    "completed": set[str](),
    "failed": set[str](),
    "cancelled": set[str](),
}
RUN_STEPS = {
    "pending": {"running", "cancelled", "failed"},
    "running": {"completed", "failed", "cancelled", "timeout", "pending"},
    "completed": set[str](),
    "failed": set[str](),
    "cancelled": set[str](),
    "timeout": set[str](),
}
EVENT_TYPES = [
    *(
        "session_created",
        "session_started",
        "session_paused",
        "session_resumed",
        "session_completed",
        "session_failed",
    ),
    *("session_cancelled", "run_started", "run_completed", "run_failed", "run_cancelled", "run_timeout"),
    *(
        "message_sent",
        "message_received",
        "message_streamed",
        "tool_call_started",
        "tool_call_completed",
        "tool_call_failed",
    ),
    *("error_occurred", "error_recovered", "token_usage_updated", "turn_completed"),
    *("workspace_snapshot_taken", "workspace_diff_computed", "policy_violation"),
    *("tool_approval_requested", "tool_approval_granted", "tool_approval_denied", "custom"),
]

NOON = datetime(2024, 7, 1, 12, tzinfo=UTC)


def new_record(prefix: str, **fields: Any) -> Record:
    """A record of that kind, with these fields and no more than it needs besides."""
    needed: dict[str, Any]
    match prefix:
        case "ses_":
            needed = {"agent_id": "agent"}
            return Session.new(**(needed | fields))
        case "run_":
            needed = {"session_id": "ses"}
            return Run.new(**(needed | fields))
        case "evt_":
            needed = {"type": "custom", "session_id": "ses"}
            return Event.new(**(needed | fields))
        case _:
            needed = {"key": "report.txt", "byte_size": 3, "checksum_sha256": "ab" * 32}
            needed |= {"storage_backend": "file", "storage_ref": "ab/cd"}
            return Artifact.new(**(needed | fields))


PREFIXES = ["ses_", "run_", "evt_", "art_"]

by_kind = pytest.mark.parametrize("prefix", PREFIXES)


# -- making


@by_kind
def test_a_new_record_has_an_id_of_its_own_that_increases(prefix: str) -> None:
    ids = [new_record(prefix).id for _ in range(100)]
    assert all(id.startswith(prefix) for id in ids)
    assert ids == sorted(set(ids))


@by_kind
def test_a_new_record_keeps_the_id_it_is_given(prefix: str) -> None:
    assert new_record(prefix, id="mine").id == "mine"


@by_kind
def test_a_new_record_happens_now_in_utc(prefix: str) -> None:
    before = datetime.now(UTC)
    record = new_record(prefix)
    time = record.timestamp if isinstance(record, Event) else record.created_at
    assert before <= time <= datetime.now(UTC)


@by_kind
def test_a_record_is_frozen(prefix: str) -> None:
    record = new_record(prefix)
    for field in record.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(record, field, "other")


@by_kind
def test_a_record_keeps_a_copy_of_what_it_is_given(prefix: str) -> None:
    metadata: dict[str, Any] = {"inner": {"list": [1]}}
    record = new_record(prefix, metadata=metadata)
    metadata["inner"]["list"].append(2)
    assert record.metadata == {"inner": {"list": [1]}}


@by_kind
def test_a_checked_record_shares_nothing_with_the_first(prefix: str) -> None:
    record = new_record(prefix, metadata={"inner": {"list": [1]}})
    copy = record.checked()
    assert copy == record
    record.metadata["inner"]["list"].append(2)
    assert copy.metadata == {"inner": {"list": [1]}}


def test_a_new_session_is_pending_and_a_new_run_too() -> None:
    session, run = Session.new(agent_id="agent"), Run.new(session_id="ses")
    assert session.status is SessionStatus.PENDING
    assert (run.status, run.attempt, run.owner) == (RunStatus.PENDING, 0, None)
    assert session.created_at == session.updated_at


def test_the_fields_are_those_of_the_contract() -> None:
    assert Session.__struct_fields__ == (
        *("id", "agent_id", "status", "parent_session_id", "metadata", "context", "tags"),
        *("created_at", "updated_at", "deleted_at"),
    )
    assert Run.__struct_fields__ == (
        *("id", "session_id", "status", "input", "output", "error", "metadata", "turn_count"),
        *("token_usage", "created_at", "started_at", "ended_at", "provider", "provider_metadata"),
        *("cost_usd", "owner", "attempt"),
    )
    assert Event.__struct_fields__ == (
        *("id", "type", "session_id", "run_id", "timestamp", "data", "metadata", "sequence_number"),
        *("schema_version", "provider", "correlation_id"),
    )
    assert Artifact.__struct_fields__ == (
        *("id", "session_id", "run_id", "key", "content_type", "byte_size", "checksum_sha256"),
        *("storage_backend", "storage_ref", "metadata", "created_at", "deleted_at"),
    )


def test_the_event_types_are_those_of_the_contract() -> None:
    assert [str(kind) for kind in EventType] == EVENT_TYPES


def test_exactly_the_four_ends_of_a_run_are_terminal_events() -> None:
    ends = {"run_completed", "run_failed", "run_cancelled", "run_timeout"}
    assert set(TERMINAL_EVENT_TYPES) == ends
    for name in EVENT_TYPES:
        assert Event.new(type=name, session_id="ses").is_terminal is (name in ends)


def test_a_run_names_its_attempt_as_its_fence() -> None:
    run = Run.new(session_id="ses", id="run").replace(attempt=3)
    assert run.fence == Fence("ses", "run", 3)


# -- refusing


@by_kind
@pytest.mark.parametrize("id", ["", "a\0b", "\ud800", "x" * 1025, 1, b"a"], ids=lambda id: repr(id)[:12])
def test_an_id_that_not_every_database_can_keep_is_refused(prefix: str, id: Any) -> None:
    with pytest.raises(ValidationError, match=r"^id must be a string"):
        new_record(prefix, id=id)


@by_kind
@pytest.mark.parametrize("metadata", [[], "text", 1, 0, False, "", {1: 2}, {"a": math.nan}], ids=repr)
def test_metadata_that_is_no_json_object_is_refused(prefix: str, metadata: Any) -> None:
    with pytest.raises(ValidationError, match="metadata"):
        new_record(prefix, metadata=metadata)


BAD_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("ses_", {"agent_id": ""}),
    ("ses_", {"agent_id": None}),
    ("ses_", {"status": "running"}),
    ("ses_", {"status": None}),
    ("ses_", {"status": []}),
    ("ses_", {"parent_session_id": ""}),
    ("ses_", {"context": []}),
    ("ses_", {"tags": "text"}),
    ("ses_", {"tags": [1]}),
    ("ses_", {"tags": [None]}),
    ("ses_", {"tags": ["\ud800"]}),
    ("ses_", {"tags": 7}),
    ("ses_", {"created_at": datetime(2024, 1, 1)}),
    ("ses_", {"created_at": "2024-01-01T00:00:00Z"}),
    ("run_", {"session_id": None}),
    ("run_", {"input": ...}),
    ("run_", {"input": {"prompt": b"bytes"}}),
    ("run_", {"provider": ""}),
    ("run_", {"created_at": datetime(2024, 1, 1)}),
    ("evt_", {"type": "run_exploded"}),
    ("evt_", {"type": None}),
    ("evt_", {"type": ["custom"]}),
    ("evt_", {"session_id": ""}),
    ("evt_", {"run_id": ""}),
    ("evt_", {"data": []}),
    ("evt_", {"data": 0}),
    ("evt_", {"timestamp": datetime(2024, 1, 1)}),
    ("evt_", {"sequence_number": 0}),
    ("evt_", {"sequence_number": 1.0}),
    ("evt_", {"sequence_number": True}),
    ("evt_", {"schema_version": 0}),
    ("evt_", {"schema_version": True}),
    ("evt_", {"correlation_id": 7}),
    ("art_", {"key": ""}),
    ("art_", {"byte_size": -1}),
    ("art_", {"checksum_sha256": "AB" * 32}),
    ("art_", {"checksum_sha256": "ab"}),
    ("art_", {"storage_backend": None}),
    ("art_", {"created_at": datetime(2024, 1, 1)}),
]


@pytest.mark.parametrize(("prefix", "bad"), BAD_FIELDS, ids=str)
def test_a_bad_field_is_refused_by_name(prefix: str, bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(ValidationError) as refused:
        new_record(prefix, **bad)
    assert str(refused.value).startswith(name)


@pytest.mark.parametrize(
    "bad",
    [
        {"cost_usd": "free"},
        {"cost_usd": True},
        {"cost_usd": math.nan},
        {"cost_usd": 10**400},
        {"attempt": -1},
        {"turn_count": None},
        {"token_usage": []},
        {"error": "text"},
        {"output": {"a": 2**64}},
        {"started_at": datetime(2024, 1, 1)},
        {"owner": ""},
        {"status": "active"},
    ],
    ids=str,
)
def test_what_is_wrong_in_a_record_made_by_hand_is_refused_by_name_when_it_is_checked(
    bad: dict[str, Any],
) -> None:
    (name,) = bad
    with pytest.raises(ValidationError) as refused:
        Run.new(session_id="ses").replace(**bad).checked()
    assert str(refused.value).startswith(name)


def test_a_whole_cost_is_stored_as_a_float() -> None:
    cost = Run.new(session_id="ses").replace(cost_usd=2).checked().cost_usd
    assert (type(cost), cost) == (float, 2.0)


def test_times_are_converted_to_utc() -> None:
    local = NOON.astimezone(timezone(timedelta(hours=2)))
    event = Event.new(type="custom", session_id="ses", timestamp=local)
    assert event.timestamp == NOON
    assert event.timestamp.tzinfo is UTC


# -- steps


@pytest.mark.parametrize("source", SESSION_STEPS)
@pytest.mark.parametrize("target", SESSION_STEPS)
def test_a_session_takes_exactly_the_steps_of_the_table(source: str, target: str) -> None:
    session = Session.new(agent_id="agent", status=source)
    if target in SESSION_STEPS[source]:
        changed = session.with_status(target, at=NOON)
        assert (changed.status, changed.updated_at) == (SessionStatus(target), NOON)
        assert changed.replace(status=session.status, updated_at=session.updated_at) == session
    else:
        with pytest.raises(InvalidTransition) as refused:
            session.with_status(target)
        assert (refused.value.from_status, refused.value.to_status) == (source, target)
        assert type(refused.value.from_status) is str


def run_that_is(status: str) -> Run:
    return Run.new(session_id="ses").replace(
        status=RunStatus(status), owner="node", attempt=2, started_at=NOON - timedelta(hours=1)
    )


@pytest.mark.parametrize("source", RUN_STEPS)
@pytest.mark.parametrize("target", RUN_STEPS)
def test_a_run_takes_exactly_the_steps_of_the_table(source: str, target: str) -> None:
    run = run_that_is(source)
    if target not in RUN_STEPS[source]:
        with pytest.raises(InvalidTransition) as refused:
            run.with_status(target)
        assert (refused.value.from_status, refused.value.to_status) == (source, target)
        return
    changed = run.with_status(RunStatus(target), at=NOON)
    assert changed.status == target
    assert changed.attempt == 2
    if target == "running":
        assert (changed.started_at, changed.ended_at, changed.owner) == (NOON, None, "node")
    elif target == "pending":
        assert (changed.started_at, changed.ended_at, changed.owner) == (None, None, None)
    else:
        assert (changed.started_at, changed.ended_at) == (run.started_at, NOON)


def test_a_step_leaves_the_record_it_starts_from_as_it_is() -> None:
    run = Run.new(session_id="ses")
    run.with_status("running")
    assert (run.status, run.started_at) == (RunStatus.PENDING, None)


def test_an_unknown_status_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="status must be one of pending, active"):
        Session.new(agent_id="agent").with_status("asleep")
    with pytest.raises(ValidationError, match="status must be one of pending, running"):
        Run.new(session_id="ses").with_status("paused")
    by_hand: Any = "asleep"
    with pytest.raises(ValidationError, match="status must be one of"):
        Session.new(agent_id="agent").replace(status=by_hand).with_status("active")


def test_a_step_at_a_naive_time_is_refused() -> None:
    with pytest.raises(ValidationError, match="at must be a timezone-aware"):
        Run.new(session_id="ses").with_status("running", at=datetime(2024, 1, 1))


def test_the_terminal_statuses_are_those_without_a_step() -> None:
    assert {status for status in SessionStatus if status.is_terminal} == {"completed", "failed", "cancelled"}
    assert {status for status in RunStatus if status.is_terminal} == {
        *("completed", "failed", "cancelled", "timeout")
    }
    assert {status for status in RunStatus if not status.is_terminal} == OPEN_RUN_STATUSES


# -- the round trip through JSON

texts = st.text(st.characters(exclude_categories=["Cs"]))
ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
times = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=st.timezones() | st.just(UTC))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(texts, values, max_size=3)
counts = st.integers(0, 2**63 - 1)

sessions = st.builds(
    Session,
    id=ids,
    agent_id=ids,
    status=st.sampled_from(SessionStatus),
    parent_session_id=st.none() | ids,
    metadata=objects,
    context=objects,
    tags=st.lists(texts, max_size=3),
    created_at=times,
    updated_at=times,
    deleted_at=st.none() | times,
)
runs = st.builds(
    Run,
    id=ids,
    session_id=ids,
    status=st.sampled_from(RunStatus),
    input=values,
    output=values,
    error=st.none() | objects,
    metadata=objects,
    turn_count=counts,
    token_usage=objects,
    created_at=times,
    started_at=st.none() | times,
    ended_at=st.none() | times,
    provider=st.none() | ids,
    provider_metadata=objects,
    cost_usd=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    owner=st.none() | ids,
    attempt=counts,
)
events = st.builds(
    Event,
    id=ids,
    type=st.sampled_from(EventType),
    session_id=ids,
    run_id=st.none() | ids,
    timestamp=times,
    data=objects,
    metadata=objects,
    sequence_number=st.none() | st.integers(1, 2**63 - 1),
    schema_version=st.integers(1, 2**63 - 1),
    provider=st.none() | ids,
    correlation_id=st.none() | ids,
)
artifacts = st.builds(
    Artifact,
    id=ids,
    session_id=st.none() | ids,
    run_id=st.none() | ids,
    key=ids,
    content_type=st.none() | ids,
    byte_size=counts,
    checksum_sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    storage_backend=ids,
    storage_ref=ids,
    metadata=objects,
    created_at=times,
    deleted_at=st.none() | times,
)


def exactly(value: Any) -> Any:
    """The value with the type of each part, so that 1, 1.0 and True differ."""
    if isinstance(value, msgspec.Struct):
        fields = {name: getattr(value, name) for name in value.__struct_fields__}
        return (type(value), exactly(fields))
    if isinstance(value, dict):
        return (type(value), {key: exactly(item) for key, item in value.items()})  # pyright: ignore
    if isinstance(value, list):
        return (type(value), [exactly(item) for item in value])  # pyright: ignore
    if isinstance(value, float):
        return (type(value), value.hex())
    return (type(value), value)  # pyright: ignore[reportUnknownVariableType]


@given(sessions | runs | events | artifacts)
def test_a_record_round_trips_through_json_exactly(record: Record) -> None:
    checked = record.checked()
    text = json.dumps(checked.to_dict(), allow_nan=False)
    again = type(checked).from_dict(json.loads(text))
    assert exactly(again) == exactly(checked)
    assert exactly(again.checked()) == exactly(checked)


@given(sessions | runs | events | artifacts, st.data())
def test_a_dict_that_somebody_has_spoiled_is_refused_or_makes_a_valid_record(
    record: Record, data: st.DataObject
) -> None:
    fields = record.checked().to_dict()
    name = data.draw(st.sampled_from(sorted(fields)))
    if data.draw(st.booleans()):
        del fields[name]
    else:
        fields[name] = data.draw(values | st.text() | st.binary() | st.floats() | st.integers())
    try:
        again = type(record).from_dict(fields)
    except ValidationError:
        return
    assert exactly(again.checked()) == exactly(again)


@pytest.mark.parametrize("fields", [None, [], "text", 1, {}, {1: 2}, {"id": "a"}, {"id": ...}], ids=repr)
@pytest.mark.parametrize("kind", [Session, Run, Event, Artifact])
def test_what_is_not_the_dict_of_a_record_is_refused(kind: type[Record], fields: Any) -> None:
    with pytest.raises(ValidationError, match=f"not the dict of a {kind.__name__}"):
        kind.from_dict(fields)


def test_a_stored_naive_time_is_refused() -> None:
    fields = Event.new(type="custom", session_id="ses").to_dict()
    fields["timestamp"] = "2024-01-01T00:00:00"
    with pytest.raises(ValidationError, match="timestamp"):
        Event.from_dict(fields)


def test_the_dict_of_a_record_is_plain_json() -> None:
    event = Event.new(type="custom", session_id="ses", id="evt", timestamp=NOON, data={"a": (1, 2)})
    assert exactly(event.to_dict()) == exactly(
        {
            "id": "evt",
            "type": "custom",
            "session_id": "ses",
            "run_id": None,
            "timestamp": "2024-07-01T12:00:00Z",
            "data": {"a": [1, 2]},
            "metadata": {},
            "sequence_number": None,
            "schema_version": 1,
            "provider": None,
            "correlation_id": None,
        }
    )


def test_the_dict_of_a_record_shares_nothing_with_it() -> None:
    run = Run.new(session_id="ses", input={"list": [1]})
    run.to_dict()["input"]["list"].append(2)
    again = Run.from_dict(fields := run.to_dict())
    fields["input"]["list"].append(3)
    assert run.input == again.input == {"list": [1]}


def test_the_garbage_collector_passes_events_by_and_leaves_them_their_payloads() -> None:
    event = Event.new(type="custom", session_id="s", data={"list": [1]})
    assert not gc.is_tracked(event)
    gc.collect()
    assert event.data == {"list": [1]}
