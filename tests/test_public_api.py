"""The public names: each exists, and the contract's are where it says."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import asm_runtime


def all_modules() -> list[str]:
    walked = pkgutil.walk_packages(asm_runtime.__path__, prefix="asm_runtime.")
    # Running a migration script or the command line is not importing a library.
    left_out = (".versions.", ".migrations.env", ".__main__")
    return ["asm_runtime", *(module.name for module in walked if not any(p in module.name for p in left_out))]


CONTRACT = {
    "asm_runtime": (
        "AsmError Event EventType Run RunStatus Session SessionManager SessionServer SessionStatus "
        "SessionSupervisor errors"
    ),
    "asm_runtime.ports": (
        "ArtifactStore Capability ExecutionResult Fence Maintenance ProviderAdapter ProviderResult QueryAPI "
        "RunContext RunResult ServerStatus SessionStore"
    ),
    "asm_runtime.stores": "InMemorySessionStore SQLSessionStore",
    "asm_runtime.adapters": "ScriptedAdapter ShellAdapter",
    "asm_runtime.actor": "Actor Supervisor",
    "asm_runtime.telemetry": "configure",
    "asm_runtime.errors": (
        "ActorStopped ArtifactNotFound AsmError AwaitTimeout CapabilityMissing Conflict DependencyMissing "
        "DrainTimeout Draining InvalidTransition LeaseLost MigrationRequired NotFound PolicyViolation "
        "ProviderAuthenticationFailed ProviderError ProviderRateLimited ProviderTimeout ProviderUnavailable "
        "QueueFull RunCancelled RunFailed RunNotFound RunTimeout SessionNotFound StoreError StoreUnavailable "
        "ValidationError"
    ),
}


@pytest.mark.parametrize("name", all_modules())
def test_what_a_module_offers_is_there_and_listed_once(name: str) -> None:
    module = importlib.import_module(name)
    offered: list[str] = getattr(module, "__all__", [])
    assert len(set(offered)) == len(offered)
    for item in offered:
        assert getattr(module, item) is not None


@pytest.mark.parametrize(("module", "names"), CONTRACT.items())
def test_the_names_of_the_contract_are_where_it_says(module: str, names: str) -> None:
    assert set(names.split()) <= set(importlib.import_module(module).__all__)


def test_the_top_level_lists_its_names_in_order() -> None:
    names = asm_runtime.__all__
    assert names == sorted(names)
