from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asm_runtime.adapters.scripted import (
    Gate,
    ScriptedAdapter,
    Stage,
    delay,
    emit,
    fail,
    finish,
    say,
    tokens,
)
from asm_runtime.errors import ProviderError, ProviderTimeout, RunCancelled, ValidationError
from asm_runtime.ports import Capability, ProviderAdapter
from asm_runtime.records import EventType
from asm_runtime.testing import JumpingClock
from tests.adapters.recording import Recording


def test_it_is_an_adapter() -> None:
    assert isinstance(ScriptedAdapter(), ProviderAdapter)
    assert ScriptedAdapter().name == "scripted"
    assert ScriptedAdapter(name="claude").name == "claude"


@pytest.mark.parametrize(
    "asked",
    [
        "good morning",
        {"prompt": "good morning"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "good morning"}]},
    ],
)
async def test_without_a_script_it_echoes_the_prompt(asked: Any) -> None:
    recording = Recording(asked)
    result = await recording.of(ScriptedAdapter())
    assert recording.events == [
        ("message_streamed", {"content": "good ", "delta": "good "}),
        ("message_streamed", {"content": "morning", "delta": "morning"}),
        ("message_received", {"role": "assistant", "content": "good morning"}),
    ]
    assert result.output == {"content": "good morning"}
    assert result.token_usage == {"input_tokens": 2, "output_tokens": 2}


async def test_without_a_script_an_input_of_another_shape_is_echoed_as_json() -> None:
    result = await Recording({"command": ["ls"]}).of(ScriptedAdapter())
    assert result.output == {"content": '{"command":["ls"]}'}


async def test_the_steps_of_a_script_happen_in_order_and_what_was_said_is_the_output() -> None:
    adapter = ScriptedAdapter([emit("tool_call_started", {"tool_name": "ls"}), tokens(2), say("done")])
    recording = Recording({})
    result = await recording.of(adapter)
    assert recording.types() == [
        "tool_call_started",
        "message_streamed",
        "message_streamed",
        "message_received",
    ]
    assert result.output == {"content": "token 1 token 2 done"}


async def test_a_result_ends_the_script() -> None:
    recording = Recording({})
    result = await recording.of(
        ScriptedAdapter([finish({"answer": 42}, model="m", cost_usd=0.5), say("late")])
    )
    assert (result.output, result.model, result.cost_usd) == ({"answer": 42}, "m", 0.5)
    assert recording.events == []


async def test_a_failure_is_raised_as_it_is() -> None:
    adapter = ScriptedAdapter([say("hello"), fail(ProviderTimeout("no answer"))])
    recording = Recording({})
    with pytest.raises(ProviderTimeout, match="no answer"):
        await recording.of(adapter)
    assert recording.types() == ["message_received"]
    assert adapter.finished == [recording.run.id]


async def test_a_test_can_write_steps_of_its_own() -> None:
    async def look(stage: Stage) -> None:
        await stage.context.emit("custom", {"name": "seen", "agent": stage.session.agent_id})

    recording = Recording({})
    await recording.of(ScriptedAdapter([look]))
    assert recording.events == [("custom", {"name": "seen", "agent": "tests"})]


async def test_runs_wait_at_a_gate_until_the_test_opens_it() -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate, say("through")])
    first, second = Recording({}), Recording({})
    running = [first.begin(adapter), second.begin(adapter)]
    assert await gate.reached(2) == [first.run.id, second.run.id] == gate.waiting
    gate.open(second.run.id)
    await running[1]
    assert gate.waiting == [first.run.id]
    gate.open()
    await running[0]
    assert gate.waiting == []
    assert first.types() == second.types() == ["message_received"]


async def test_a_gate_that_is_open_lets_everybody_pass_until_it_is_closed() -> None:
    gate = Gate()
    gate.open()
    adapter = ScriptedAdapter([gate])
    await Recording({}).of(adapter)
    gate.close()
    late = Recording({})
    running = late.begin(adapter)
    assert await gate.reached(run_id=late.run.id) == [late.run.id]
    gate.open()
    await running


async def test_a_cancelled_run_leaves_the_gate() -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    recording = Recording({})
    running = recording.begin(adapter)
    await gate.reached()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert gate.waiting == []
    assert (adapter.started, adapter.finished, adapter.cancelled) == (
        [recording.run.id],
        [],
        [recording.run.id],
    )


async def test_a_run_at_a_stubborn_gate_ignores_cancellation_until_it_is_opened() -> None:
    gate = Gate(stubborn=True)
    recording = Recording({})
    running = recording.begin(ScriptedAdapter([gate, say("still here")]))
    await gate.reached()
    for _ in range(3):
        running.cancel()
        await asyncio.sleep(0)
    assert not running.done()
    gate.open()
    await running
    assert recording.types() == ["message_received"]


async def test_delays_and_gaps_are_on_the_clock() -> None:
    clock = JumpingClock()
    recording = Recording({})
    running = recording.begin(ScriptedAdapter([delay(1000), tokens("a b", gap_ms=10)], clock=clock))
    await clock.advance_ms(1000)
    assert recording.events == []
    await clock.advance_ms(10)
    assert recording.written() == "a "
    await clock.advance_ms(10)
    await running
    assert recording.written() == "a b"


async def test_cancel_ends_the_run_and_leaves_the_others() -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    recording, other = Recording({}), Recording({})
    running, going_on = recording.begin(adapter), other.begin(adapter)
    await gate.reached(2)
    await adapter.cancel(recording.run.id)
    await adapter.cancel(recording.run.id)
    with pytest.raises(RunCancelled):
        await running
    await adapter.cancel(recording.run.id)
    assert adapter.cancel_calls == [recording.run.id] * 3
    assert adapter.cancelled == [recording.run.id]
    gate.open()
    await going_on


async def test_a_run_cancelled_both_ways_ends_with_cancelled_error() -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    recording = Recording({})
    running = recording.begin(adapter)
    await gate.reached()
    await adapter.cancel(recording.run.id)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_cancel_of_an_id_that_two_sessions_use_stops_neither() -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    running = [Recording({}, run_id="build").begin(adapter) for _ in range(2)]
    await gate.reached(2)
    await adapter.cancel("build")
    gate.open()
    await asyncio.gather(*running)
    assert adapter.cancelled == []


async def test_cancel_of_an_unknown_run_does_nothing() -> None:
    await ScriptedAdapter().cancel("run_unknown")


async def test_a_function_of_the_run_chooses_the_script() -> None:
    adapter = ScriptedAdapter(lambda run: [say("yes")] if run.input == {"ask": 1} else None)
    assert (await Recording({"ask": 1}).of(adapter)).output == {"content": "yes"}
    assert (await Recording({"prompt": "echo"}).of(adapter)).output == {"content": "echo"}


async def test_scripts_are_taken_in_the_order_in_which_runs_start_and_then_run_out() -> None:
    adapter = ScriptedAdapter(scripts=[[say("one")], [fail(ProviderTimeout("two"))]])
    assert (await Recording({}).of(adapter)).output == {"content": "one"}
    with pytest.raises(ProviderTimeout):
        await Recording({}).of(adapter)
    with pytest.raises(ProviderError, match="no script is left"):
        await Recording({}).of(adapter)


async def test_when_the_scripts_run_out_the_common_one_holds() -> None:
    adapter = ScriptedAdapter([say("always")], scripts=[[say("first")]])
    outputs = [(await Recording({}).of(adapter)).output["content"] for _ in range(3)]
    assert outputs == ["first", "always", "always"]


async def test_an_input_can_carry_its_script_as_json() -> None:
    script = [
        {"say": "hello"},
        {"emit": "custom", "data": {"name": "x"}},
        {"tokens": 1},
        {"delay_ms": 0},
        {"gate": "here"},
        {"result": {"output": 7}},
    ]
    adapter = ScriptedAdapter()
    recording = Recording({"script": script})
    running = recording.begin(adapter)
    await adapter.gate("here").reached()
    adapter.gate("here").open()
    assert (await running).output == 7
    assert recording.types() == ["message_received", "custom", "message_streamed"]


async def test_a_script_in_the_input_can_fail_with_any_code() -> None:
    failure = {"code": "provider_rate_limited", "message": "slow down", "details": {"retry_after_ms": 5}}
    with pytest.raises(ProviderError, match="slow down") as caught:
        await Recording({"script": [{"fail": failure}]}).of(ScriptedAdapter())
    assert (caught.value.code, caught.value.details) == ("provider_rate_limited", {"retry_after_ms": 5})


@pytest.mark.parametrize(
    "script",
    [
        "say hello",
        ["say"],
        [{"shout": "x"}],
        [{"say": "x", "emit": "custom"}],
        [{"say": "x", "louder": 1}],
        [{"result": {"unknown": 1}}],
        [{}],
    ],
)
async def test_a_script_in_the_input_that_means_nothing_is_refused(script: Any) -> None:
    with pytest.raises(ValidationError, match="script"):
        await Recording({"script": script}).of(ScriptedAdapter())


async def test_it_remembers_what_it_was_given() -> None:
    adapter = ScriptedAdapter()
    recording = Recording({}, adapter_opts={"temperature": 0})
    await recording.of(adapter)
    await recording.of(adapter)
    assert adapter.started == adapter.finished == [recording.run.id] * 2
    assert adapter.contexts == [recording.context] * 2
    assert adapter.contexts[0].adapter_opts == {"temperature": 0}


async def test_capabilities_are_those_it_was_made_with() -> None:
    search = Capability(name="search", type="tool", enabled=False)
    assert await ScriptedAdapter(capabilities=["files", search]).capabilities() == [
        Capability(name="files", type="tool"),
        search,
    ]


def test_any_adapter_option_is_taken_unless_the_names_are_given() -> None:
    ScriptedAdapter().validate_config({"anything": 1})
    adapter = ScriptedAdapter(adapter_opts=["model"])
    adapter.validate_config({"model": "m"})
    with pytest.raises(ValidationError, match="adapter_opts has no 'modell': model allowed"):
        adapter.validate_config({"modell": "m"})


async def test_events_carry_what_the_step_says_beside_the_data() -> None:
    seen: dict[str, Any] = {}

    async def keep(type: EventType | str, data: Any = None, **rest: Any) -> None:
        seen.update(rest, type=type, data=data)

    recording = Recording({})
    context = type(recording.context)(emit=keep, attempt=1)
    await ScriptedAdapter([emit("custom", {"name": "n"}, id="evt_1", metadata={"k": 1})]).execute(
        recording.run, recording.session, context
    )
    assert seen == {
        "type": "custom",
        "data": {"name": "n"},
        "id": "evt_1",
        "metadata": {"k": 1},
        "timestamp": None,
    }
