"""moto's S3 server in a process of its own, and what the tests do to its buckets behind the proxy's back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import boto3
import fsspec

from tests import ROOT
from tests.chaos.jobs import wait_until

__all__ = ["BUCKET", "S3Server", "credentials", "key_of", "s3_server"]

BUCKET = "chaos"  # of every test
_TAIL_BYTES = 4000

_SERVE = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
print(port, flush=True)
sys.stdin.read()
server.stop()
"""


def credentials(endpoint: str, read_seconds: float = 15.0) -> dict[str, str]:
    """What the usual environment says of a store; ``read_seconds``: how long a client waits for bytes."""
    limits = {"read_timeout": read_seconds, "connect_timeout": read_seconds}
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "chaos",
        "AWS_SECRET_ACCESS_KEY": "chaos",
        "AWS_DEFAULT_REGION": "us-east-1",
        "FSSPEC_S3": json.dumps({"config_kwargs": limits}),
    }


class S3Server:
    """A running server, and the objects in it; thread-safe."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        keys = {"aws_access_key_id": "chaos", "aws_secret_access_key": "chaos", "region_name": "us-east-1"}
        self._client = boto3.client("s3", endpoint_url=self.url, **keys)

    def create_bucket(self, bucket: str) -> None:
        self._client.create_bucket(Bucket=bucket)

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self._client.put_object(Bucket=bucket, Key=key, Body=data)

    def delete(self, bucket: str, key: str) -> None:
        self._client.delete_object(Bucket=bucket, Key=key)

    def upload(self, bucket: str, prefix: str, folder: Path) -> None:
        """Every regular file below a folder, under ``key_of`` its relative path."""
        for base, _, names in os.walk(folder):
            for name in names:
                path = Path(base) / name
                if path.is_file() and not path.is_symlink():
                    key = f"{prefix}/{key_of(path.relative_to(folder).as_posix())}"
                    self.put(bucket, key, path.read_bytes())


def key_of(name: str) -> str:
    """A key for a file: this server finds no object with a line break in its key, as S3 does."""
    return name.replace("\n", "\N{RETURN SYMBOL}")


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start it, and end it with its process. pytest shows what it complained about where a test fails."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # they know the server of an earlier test
    with tempfile.TemporaryFile() as complaints:
        process: subprocess.Popen[Any] = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            server = S3Server(int(process.stdout.readline()))
            wait_until(lambda: _answers(server), 60, "moto answers")
            yield server
        finally:
            complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - _TAIL_BYTES))
            print(f"moto said: {complaints.read().decode(errors='replace')}", file=sys.stderr)
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(server: S3Server) -> bool:
    try:
        with urlopen(server.url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
