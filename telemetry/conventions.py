"""The names in the telemetry, each in one place.

The GenAI names follow version 1.41.0 of the OpenTelemetry semantic conventions, the last numbered
release that holds them: 1.42.0 moved them to a repository of their own, which has no release yet and
is still renaming (`gen_ai.client.token.usage`, for one). All of them have the status "development".
Source: github.com/open-telemetry/semantic-conventions, tag v1.41.0, docs/gen-ai/gen-ai-agent-spans.md
and docs/gen-ai/gen-ai-metrics.md; they go on in github.com/open-telemetry/semantic-conventions-genai.
"""

from __future__ import annotations

__all__ = [
    "ASM_ADAPTER_EVENT_TYPE",
    "ASM_EVENTS",
    "ASM_FIRST_SEQUENCE",
    "ASM_IN_FLIGHT_RUNS",
    "ASM_LAST_SEQUENCE",
    "ASM_QUEUE_DEPTH",
    "ASM_QUEUE_WAIT",
    "ASM_RUN_ATTEMPT",
    "ASM_RUN_ID",
    "ASM_RUN_STATUS",
    "ASM_SESSION_ID",
    "ASM_TOOL_UNFINISHED",
    "CAPTURE_CONTENT",
    "ERROR_TYPE",
    "EVENT_ABANDONED",
    "EVENT_EXCEPTION",
    "EVENT_FIRST_OUTPUT",
    "EXCEPTION_MESSAGE",
    "EXCEPTION_TYPE",
    "GEN_AI_AGENT_ID",
    "GEN_AI_AGENT_NAME",
    "GEN_AI_CONVERSATION_ID",
    "GEN_AI_INPUT_MESSAGES",
    "GEN_AI_OPERATION_NAME",
    "GEN_AI_OUTPUT_MESSAGES",
    "GEN_AI_PROVIDER_NAME",
    "GEN_AI_REQUEST_MODEL",
    "GEN_AI_RESPONSE_FINISH_REASONS",
    "GEN_AI_RESPONSE_MODEL",
    "GEN_AI_TOKEN_TYPE",
    "GEN_AI_TOOL_CALL_ARGUMENTS",
    "GEN_AI_TOOL_CALL_ID",
    "GEN_AI_TOOL_CALL_RESULT",
    "GEN_AI_TOOL_NAME",
    "GEN_AI_USAGE",
    "METRIC_APPENDED_EVENTS",
    "METRIC_COMMIT_EVENTS",
    "METRIC_COMMIT_REQUESTS",
    "METRIC_IN_FLIGHT_RUNS",
    "METRIC_LATE_EVENTS",
    "METRIC_OPERATION_DURATION",
    "METRIC_QUEUE_DEPTH",
    "METRIC_QUEUE_WAIT",
    "METRIC_RUN_DURATION",
    "METRIC_SUBSCRIPTION_LAG",
    "METRIC_TOKEN_USAGE",
    "METRIC_WAITERS",
    "OPERATION_DURATION_BOUNDARIES",
    "OPERATION_EXECUTE_TOOL",
    "OPERATION_INVOKE_AGENT",
    "OTHER",
    "SCHEMA_URL",
    "SCOPE",
    "SCOPE_VERSION",
    "SEMCONV_VERSION",
    "SPAN_DRAIN",
    "SPAN_RUN_EXECUTE",
    "SPAN_RUN_QUEUED",
    "SPAN_SESSION",
    "SPAN_STORE",
    "TOKEN_USAGE_BOUNDARIES",
]

SCOPE = "asm_runtime"
SCOPE_VERSION = "0.1.0"
"""The release. Asking the installed package for it would add a third to the time of the import."""

SEMCONV_VERSION = "1.41.0"
SCHEMA_URL = f"https://opentelemetry.io/schemas/{SEMCONV_VERSION}"

# -- GenAI

GEN_AI_OPERATION_NAME = "gen_ai.operation.name"
OPERATION_INVOKE_AGENT = "invoke_agent"
OPERATION_EXECUTE_TOOL = "execute_tool"
GEN_AI_PROVIDER_NAME = "gen_ai.provider.name"
GEN_AI_AGENT_ID = "gen_ai.agent.id"
GEN_AI_AGENT_NAME = "gen_ai.agent.name"
GEN_AI_CONVERSATION_ID = "gen_ai.conversation.id"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
GEN_AI_USAGE = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_creation_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
}
"""The attributes, by the keys of `Run.token_usage`."""
GEN_AI_TOOL_NAME = "gen_ai.tool.name"
GEN_AI_TOOL_CALL_ID = "gen_ai.tool.call.id"
GEN_AI_TOKEN_TYPE = "gen_ai.token.type"
METRIC_OPERATION_DURATION = "gen_ai.client.operation.duration"
OPERATION_DURATION_BOUNDARIES = tuple(0.01 * 2**power for power in range(14))
METRIC_TOKEN_USAGE = "gen_ai.client.token.usage"
TOKEN_USAGE_BOUNDARIES = tuple(4**power for power in range(14))

# -- GenAI, content: only if it is asked for

CAPTURE_CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""The environment variable. Source: opentelemetry-util-genai, which the instrumentations for Python share."""
GEN_AI_INPUT_MESSAGES = "gen_ai.input.messages"
GEN_AI_OUTPUT_MESSAGES = "gen_ai.output.messages"
GEN_AI_TOOL_CALL_ARGUMENTS = "gen_ai.tool.call.arguments"
GEN_AI_TOOL_CALL_RESULT = "gen_ai.tool.call.result"

# -- general

ERROR_TYPE = "error.type"
OTHER = "_OTHER"
"""The error type of what has no well-known one."""
EVENT_EXCEPTION = "exception"
EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"

# -- ours

SPAN_RUN_QUEUED = "asm.run.queued"
SPAN_RUN_EXECUTE = "asm.run.execute"
SPAN_SESSION = "asm.session"
SPAN_DRAIN = "asm.drain"
SPAN_STORE = {"append": "asm.store.append", "flush": "asm.store.flush"}

EVENT_FIRST_OUTPUT = "asm.run.first_output"
EVENT_ABANDONED = "asm.run.abandoned"

ASM_RUN_ID = "asm.run.id"
ASM_RUN_STATUS = "asm.run.status"
ASM_RUN_ATTEMPT = "asm.run.attempt"
ASM_SESSION_ID = "asm.session.id"
ASM_IN_FLIGHT_RUNS = "asm.session.in_flight_runs"
ASM_QUEUE_DEPTH = "asm.queue.depth"
ASM_QUEUE_WAIT = "asm.queue.wait"
ASM_ADAPTER_EVENT_TYPE = "asm.event.type"
ASM_TOOL_UNFINISHED = "asm.tool.unfinished"
ASM_EVENTS = "asm.store.events"
ASM_FIRST_SEQUENCE = "asm.store.first_sequence"
ASM_LAST_SEQUENCE = "asm.store.last_sequence"

METRIC_QUEUE_DEPTH = "asm.queue.depth"
METRIC_QUEUE_WAIT = "asm.queue.wait"
METRIC_IN_FLIGHT_RUNS = "asm.run.in_flight"
METRIC_RUN_DURATION = "asm.run.duration"
METRIC_LATE_EVENTS = "asm.run.late_events"
METRIC_APPENDED_EVENTS = "asm.store.appended_events"
METRIC_COMMIT_EVENTS = "asm.store.commit.events"
METRIC_COMMIT_REQUESTS = "asm.store.commit.requests"
METRIC_WAITERS = "asm.store.waiters"
METRIC_SUBSCRIPTION_LAG = "asm.subscription.lag"
