"""An S3 server (moto) that checks keys, signatures and policies once it is locked: `with serving() as (address, reader):`"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import s3_server

ROOT = {"region_name": "us-east-1", "aws_access_key_id": "root", "aws_secret_access_key": "root"}
READ_ONLY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": ["s3:Get*", "s3:List*"], "Resource": "*"}],
}


@contextmanager
def serving() -> Iterator[tuple[str, dict[str, str]]]:
    """(address, environment of a user who may only read). Until `lock` is called, anybody may do everything."""
    with s3_server.serving(INITIAL_NO_AUTH_ACTION_COUNT="1000") as address:
        iam = boto3.client("iam", endpoint_url=address, **ROOT)
        iam.create_user(UserName="reader")
        iam.put_user_policy(UserName="reader", PolicyName="p", PolicyDocument=json.dumps(READ_ONLY))
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        yield address, {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


def lock(address: str) -> None:
    """From now on the server checks everybody."""
    request = urllib.request.Request(
        f"{address}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}, method="POST"
    )
    urllib.request.urlopen(request).read()
