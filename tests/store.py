"""An S3 server with a bucket, which this process uses too: `with store.serving("tests") as environment:`"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
import s3_server

from segdist import storage
from segdist.storage import s3


@contextmanager
def serving(bucket: str, python: str = sys.executable) -> Iterator[dict[str, str]]:
    """The environment in which it is there."""
    with s3_server.serving(python) as address, joined(address, bucket) as environment:
        yield environment


@contextmanager
def joined(address: str, bucket: str) -> Iterator[dict[str, str]]:
    """The same, of a server that runs already."""
    environment = s3_server.settings(address)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        s3._client_of.cache_clear()
        boto3.client("s3").create_bucket(Bucket=bucket)
        yield environment
    s3._client_of.cache_clear()


def copy(folder: str, uri: str) -> None:
    for entry in storage.walk(folder):
        storage.write(f"{uri}/{entry.name}", storage.read(f"{folder}/{entry.name}"))
