"""A server that speaks S3, on this machine: moto's, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

__all__ = ["S3Server", "imported", "s3_server"]

KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI-secret-K7MDENG"

SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""


def imported(name: str) -> Any:
    """A module that not every machine has: without it a test is skipped at home and fails in CI."""
    return import_module(name) if os.environ.get("CI") else pytest.importorskip(name)


class S3Server:
    """One that is running."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def make_bucket(self, name: str) -> None:
        """Make a bucket."""
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        urllib.request.urlopen(request).close()

    def get(self, path: str) -> str:
        """What the server answers to a question."""
        with urllib.request.urlopen(f"{self.url}/{path}") as answer:
            text: str = answer.read().decode()
            return text

    def client(self, bucket: str, **options: Any) -> Any:
        """A store of obstore's for a bucket."""
        return imported("obstore.store").S3Store(
            bucket,
            endpoint=self.url,
            access_key_id=KEY,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
            virtual_hosted_style_request=False,
            **options,
        )


@contextmanager
def s3_server() -> Generator[S3Server]:
    """Run one."""
    imported("obstore")
    if find_spec("moto") is None:  # to import it takes seconds
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no moto")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        yield S3Server(int(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()
