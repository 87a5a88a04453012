"""S3 and compatible stores (AWS, MinIO, Ceph, R2 and others), through boto3.

boto3 finds credentials, region and endpoint as usual (environment, ~/.aws, instance role); `AWS_ENDPOINT_URL` selects another
store. Current SDKs send checksums as trailers, which Ceph 16 answers with 411 and Swift with 501. For stores other than AWS,
checksums are therefore sent `when_required` only, unless AWS_REQUEST_CHECKSUM_CALCULATION is set. Every upload is verified by
its ETag, the MD5 of the received bytes, or by reading it back if the ETag is something else (KMS, some stores).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import os
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from segdist.errors import MissingError, StorageError, UnavailableError
from segdist.storage.entry import Entry

T = TypeVar("T")
PART_BYTES = 16 << 20  # larger objects are uploaded in parts and downloaded in ranges, in parallel
_CONNECT_SECONDS, _READ_SECONDS, _TRIES, _CONNECTIONS = 5, 20, 5, 64
_CREDENTIALS = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException", "InvalidToken",
    "InvalidClientTokenId", "AuthFailure", "TokenRefreshRequired", "RequestTimeTooSkewed",
}  # fmt: skip
_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
_CHECKSUM = {"411", "MissingContentLength", "501", "NotImplemented", "XAmzContentSHA256Mismatch"}
_BUSY = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "ThrottlingException", "BadDigest"}


def read(uri: str) -> bytes:
    bucket, key = _bucket_and_key(uri)

    def once() -> bytes:
        answer = _client().get_object(Bucket=bucket, Key=key)
        if answer["ContentLength"] <= PART_BYTES:
            return answer["Body"].read()
        answer["Body"].close()
        data = io.BytesIO()
        _client().download_fileobj(bucket, key, data, Config=_transfer())
        return data.getvalue()

    return _with_errors(uri, "read", once)


def read_range(uri: str, offset: int, length: int) -> bytes:
    bucket, key = _bucket_and_key(uri)

    def once() -> bytes:
        wanted = f"bytes={offset}-{offset + length - 1}"
        return _client().get_object(Bucket=bucket, Key=key, Range=wanted)["Body"].read()

    data = _with_errors(uri, "read", once)
    if len(data) != length:
        raise StorageError(
            f"{uri}: truncated: {len(data)} of {length} bytes at offset {offset}. Copy or prepare the data again"
        )
    return data


def exists(uri: str) -> bool:
    bucket, key = _bucket_and_key(uri)
    try:
        if key:
            _call(uri, "read", "head_object", Bucket=bucket, Key=key)
            return True
    except MissingError:
        pass
    found = _call(uri, "list", "list_objects_v2", Bucket=bucket, Prefix=_prefix(key), MaxKeys=1)
    return found["KeyCount"] > 0


def write(uri: str, data: bytes) -> None:
    bucket, key = _bucket_and_key(uri)
    if len(data) <= PART_BYTES:
        answer = _call(uri, "write", "put_object", Bucket=bucket, Key=key, Body=data)
    else:
        _call(uri, "write", "upload_fileobj", Fileobj=io.BytesIO(data), Bucket=bucket, Key=key, Config=_transfer())
        answer = _call(uri, "write", "head_object", Bucket=bucket, Key=key)
        if answer["ContentLength"] != len(data):
            raise UnavailableError(f"{uri}: only {answer['ContentLength']} of {len(data)} bytes were stored. Try again")
    _verify(uri, data, answer["ETag"])


def create(uri: str, data: bytes) -> bool:
    bucket, key = _bucket_and_key(uri)
    for pause in (0.1, 0.3, 1.0, None):
        try:
            answer = _call(uri, "write", "put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            _verify(uri, data, answer["ETag"])
            return True
        except StorageError as error:
            code = _code(error.__cause__)
            if code in ("PreconditionFailed", "412"):  # possibly our own write, if its response was lost
                return read(uri) == data
            if code != "ConditionalRequestConflict" or pause is None:
                raise
            time.sleep(pause)
    raise AssertionError("unreachable")


def names(uri: str) -> list[str]:
    folders, files = _listing(uri)
    return sorted([*folders, *files])


def sizes(uri: str) -> dict[str, int]:
    return _listing(uri)[1]


def walk(uri: str) -> Iterator[Entry]:
    prefix = _prefix(_bucket_and_key(uri)[1])
    for page in _pages(uri):
        for item in page.get("Contents", []):
            if not item["Key"].endswith("/"):  # a placeholder for a folder, created by a browser
                yield Entry(item["Key"].removeprefix(prefix), item["Size"], item["ETag"])


def delete(uri: str) -> None:
    bucket, key = _bucket_and_key(uri)
    if not key:
        raise StorageError(f"{uri}: a whole bucket is never deleted. Name a folder or file in the bucket")
    _call(uri, "delete", "delete_object", Bucket=bucket, Key=key)
    keys = [_prefix(key) + entry.name for entry in walk(uri)]
    for first in range(0, len(keys), 1000):
        batch = {"Objects": [{"Key": k} for k in keys[first : first + 1000]], "Quiet": True}
        answer = _call(uri, "delete", "delete_objects", Bucket=bucket, Delete=batch)
        if answer.get("Errors"):
            worst = answer["Errors"][0]
            raise StorageError(
                f"{uri}: cannot delete ({worst['Code']}: {worst.get('Message', worst['Key'])}). Check that you may delete "
                "objects there"
            )


def remove_stale(uri: str) -> None:
    """Do nothing: an interrupted upload has no name yet. A lifecycle rule of the bucket should abort such uploads."""


def check_writable(uri: str) -> None:
    _bucket_and_key(uri)
    probe = f"{uri.rstrip('/')}/.probe-{uuid.uuid4().hex}"
    try:
        write(probe, b"segdist writes here")
        delete(probe)
    except StorageError as error:
        raise type(error)(str(error).replace(probe, uri)) from error


def _verify(uri: str, data: bytes, etag: str) -> None:
    """Raises UnavailableError if the stored object differs from `data`."""
    if etag.strip('"') != _etag(data) and read(uri) != data:
        raise UnavailableError(f"{uri}: the stored object differs from the uploaded data. Try again")


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{uri}: the bucket is missing. Write s3://BUCKET/FOLDER")
    return bucket, key.strip("/")


def _prefix(key: str) -> str:
    return f"{key}/" if key else ""


def _pages(uri: str, **more: Any) -> Iterator[Any]:
    bucket, key = _bucket_and_key(uri)
    token: dict[str, str] = {}
    while True:
        page = _call(uri, "list", "list_objects_v2", Bucket=bucket, Prefix=_prefix(key), **more, **token)
        yield page
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def _listing(uri: str) -> tuple[list[str], dict[str, int]]:
    """Return (names of folders, {file name: bytes}) directly below `uri`."""
    prefix = _prefix(_bucket_and_key(uri)[1])
    folders: list[str] = []
    files: dict[str, int] = {}
    for page in _pages(uri, Delimiter="/"):
        folders += [p["Prefix"].removeprefix(prefix).strip("/") for p in page.get("CommonPrefixes", [])]
        files |= {i["Key"].removeprefix(prefix): i["Size"] for i in page.get("Contents", []) if i["Key"] != prefix}
    return folders, files


def _etag(data: bytes) -> str:
    """Return S3's ETag: the MD5, or for a multipart upload the MD5 of the parts' MD5s and the number of parts."""
    if len(data) <= PART_BYTES:
        return _md5(data).hexdigest()
    parts = [_md5(data[at : at + PART_BYTES]).digest() for at in range(0, len(data), PART_BYTES)]
    return f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}"


def _md5(data: bytes) -> Any:
    return hashlib.md5(data, usedforsecurity=False)


@functools.cache
def _client_of(pid: int) -> Any:
    import boto3
    from botocore.config import Config

    # many ranks query the metadata service at the same time
    os.environ.setdefault("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "5")
    basics: dict[str, Any] = {
        "connect_timeout": _CONNECT_SECONDS,
        "read_timeout": _READ_SECONDS,
        "retries": {"mode": "standard", "total_max_attempts": _TRIES},
        "max_pool_connections": _CONNECTIONS,
        "user_agent_extra": "segdist",
    }
    session = boto3.session.Session()
    region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"  # botocore ignores AWS_REGION
    client = session.client("s3", region_name=region, config=Config(**basics))
    host = client.meta.endpoint_url.split("://")[-1].split("/")[0]
    if not host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        for field in ("request_checksum_calculation", "response_checksum_validation"):
            basics[field] = os.environ.get(f"AWS_{field.upper()}", "when_required").lower()
        client = session.client("s3", region_name=region, config=Config(**basics))
    client.meta.events.register("before-call.s3.DeleteObjects", _add_md5)
    return client


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """Add a header that older stores require for this request and that boto3 no longer sends."""
    params["headers"]["Content-MD5"] = base64.b64encode(_md5(params["body"]).digest()).decode()


def _client() -> Any:
    return _client_of(os.getpid())  # a forked process must not share connections


def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=PART_BYTES + 1, multipart_chunksize=PART_BYTES, max_concurrency=8)


def _with_errors(uri: str, verb: str, work: Callable[[], T]) -> T:
    """Return work(), retried if a body is truncated. Raises StorageError for boto3's errors."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, IncompleteReadError, ResponseStreamingError
    from s3transfer.exceptions import RetriesExceededError

    for tries_left in range(_TRIES - 1, -1, -1):
        try:
            return work()
        except (ResponseStreamingError, IncompleteReadError) as error:
            if not tries_left:
                raise _storage_error(uri, verb, error) from error
        except (ClientError, BotoCoreError, Boto3Error, RetriesExceededError, ValueError) as error:
            raise _storage_error(uri, verb, error) from error
    raise AssertionError("unreachable")


def _call(uri: str, verb: str, method: str, **arguments: Any) -> Any:
    """Call a method of the client."""
    return _with_errors(uri, verb, lambda: getattr(_client(), method)(**arguments))


def _code(error: BaseException | None) -> str:
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _storage_error(uri: str, verb: str, error: Exception) -> StorageError:
    """Return the StorageError, with a remedy, for an error of boto3."""
    from botocore import exceptions as boto
    from s3transfer.exceptions import RetriesExceededError

    bucket, _ = _bucket_and_key(uri)
    code = _code(error)
    status = (getattr(error, "response", None) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "S3"
    if code == "NoSuchBucket":
        return StorageError(f"{uri}: {endpoint} has no bucket {bucket!r}. Create the bucket or correct the URI")
    if code in ("NoSuchKey", "404"):
        return MissingError(f"{uri}: not found")
    if code in _CREDENTIALS:
        return StorageError(
            f"{uri}: {endpoint} rejects these credentials ({code}). Renew AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), AWS_PROFILE, or the machine's role"
        )
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.ProfileNotFound):
        return StorageError(
            f"{uri}: no credentials for S3 ({error}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if code in _REGION:
        return StorageError(f"{uri}: the bucket is in another region ({code}). Set AWS_REGION to the bucket's region")
    if code in _CHECKSUM:
        return StorageError(
            f"{uri}: cannot {verb} ({code}): {endpoint} does not support this SDK's checksums or conditions. Set "
            "AWS_REQUEST_CHECKSUM_CALCULATION=when_required and AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
        )
    if code in ("AccessDenied", "403", "AllAccessDisabled"):
        return StorageError(
            f"{uri}: not allowed to {verb} there ({code}). Grant these credentials s3:GetObject and s3:ListBucket, and "
            "s3:PutObject and s3:DeleteObject for writing, or use another location"
        )
    if isinstance(error, boto.ParamValidationError):
        return StorageError(f"{uri}: not a valid S3 URI ({error}). Write s3://BUCKET/FOLDER")
    if isinstance(error, boto.CredentialRetrievalError):
        return UnavailableError(f"{uri}: could not retrieve credentials for S3 ({error}). Try again later")
    if code in _BUSY or status >= 500 or status == 429:
        return UnavailableError(f"{uri}: cannot {verb}: {endpoint} is unavailable ({status or ''} {code})")
    network = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, boto.ResponseStreamingError)
    if isinstance(error, (*network, RetriesExceededError)):
        return UnavailableError(
            f"{uri}: cannot {verb}: {endpoint} does not answer ({error}). Check AWS_ENDPOINT_URL and the network"
        )
    if not code:
        return StorageError(
            f"{uri}: invalid settings for S3 ({error}). Check AWS_* and ~/.aws/config. AWS_ENDPOINT_URL must begin with "
            "http:// or https://"
        )
    return StorageError(f"{uri}: cannot {verb} ({code}: {error}). Check the bucket and your access to it")
