"""The public names: each exists, and the contract's are where it says."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import asm_runtime

CONTRACT = {
    "asm_runtime": (
        "AsmError Event EventType Run RunStatus Session SessionManager SessionServer SessionStatus "
        "SessionSupervisor errors"
    ),
    "asm_runtime.ports": (
        "ArtifactStats ArtifactStore BlobInfo Capability ExecutionResult Fence Maintenance ProviderAdapter "
        "ProviderResult QueryAPI RunContext RunResult ServerStatus SessionStore"
    ),
    "asm_runtime.stores": (
        "ArtifactRegistry CompositeSessionStore FileArtifactStore InMemoryArtifactRegistry "
        "InMemorySessionStore ObjectArtifactStore SQLSessionStore"
    ),
    "asm_runtime.adapters": "ScriptedAdapter ShellAdapter",
    "asm_runtime.actor": "Actor Supervisor",
    "asm_runtime.run_options": "RunOptionArgs",
    "asm_runtime.subscription": "Subscription",
    "asm_runtime.telemetry": "configure",
    "asm_runtime.errors": (
        "ActorStopped ArtifactNotFound AsmError AwaitTimeout CapabilityMissing Conflict DependencyMissing "
        "DrainTimeout Draining InvalidTransition LeaseLost MigrationRequired NotFound PolicyViolation "
        "ProviderAuthenticationFailed ProviderError ProviderRateLimited ProviderTimeout ProviderUnavailable "
        "QueueFull RunCancelled RunFailed RunNotFound RunTimeout SessionNotFound StoreError StoreUnavailable "
        "ValidationError"
    ),
}


# In a fresh interpreter: here, modules are imported already, in whatever order.
WALK = """
import importlib, pkgutil, asm_runtime
walked = (module.name for module in pkgutil.walk_packages(asm_runtime.__path__, "asm_runtime."))
for name in ("asm_runtime", *walked):
    if name.endswith(".__main__") or ".migrations.versions" in name:
        continue  # a command and scripts: they are run, not imported
    module = importlib.import_module(name)
    offered = getattr(module, "__all__", [])
    assert len(set(offered)) == len(offered), f"{name} lists a name twice"
    for item in offered:
        assert hasattr(module, item), f"{name} has no {item}"
    print(name)
"""


def test_every_name_that_a_module_offers_is_there_and_listed_once() -> None:
    walked = subprocess.run([sys.executable, "-c", WALK], capture_output=True, text=True)
    assert walked.returncode == 0, walked.stderr
    assert {"asm_runtime", "asm_runtime.stores.memory", "asm_runtime.cli.demo.view"} <= set(
        walked.stdout.split()
    )


@pytest.mark.parametrize(("module", "names"), CONTRACT.items())
def test_the_names_of_the_contract_are_where_it_says(module: str, names: str) -> None:
    assert set(names.split()) <= set(importlib.import_module(module).__all__)


def test_the_top_level_lists_its_names_in_order() -> None:
    names = asm_runtime.__all__
    assert names == sorted(names)
