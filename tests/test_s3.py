"""S3 by a real client against a real server (moto), and through a proxy that spoils requests: nothing is lost silently."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import guarded_s3
import numpy as np
import pytest
import s3_server
import torch
from conftest import SEGFORMER, UNET, prepare, tree
from fault_proxy import Fault, spoiling
from PIL import Image

from segdist import config, storage
from segdist.data import index as indices
from segdist.distributed import World
from segdist.doctor.run import storage_of
from segdist.errors import DataError, MissingError, StorageError, UnavailableError, UserError
from segdist.predict.batches import classify
from segdist.predict.files import predict_files
from segdist.publish.export import export
from segdist.publish.exported import load_model
from segdist.runs import checkpoints, record, snapshot
from segdist.runs.restore import build, load_trained
from segdist.runs.writer import BackgroundWriter
from segdist.storage import s3
from segdist.train.loop import fit

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
ALONE = World(0, 1, torch.device("cpu"))
Use = Callable[..., None]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server.serving() as address:
        yield address


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tries as ever, without botocore's seconds between them."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.01)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """use(address, NAME=value): this process's S3 is there from now on, with a client of its own."""

    def use(address: str, **more: str) -> None:
        for name, value in {**s3_server.settings(address), **more}.items():
            monkeypatch.setenv(name, value)
        s3._client_of.cache_clear()

    yield use
    s3._client_of.cache_clear()


@pytest.fixture
def bucket(server: str, use: Use) -> str:
    """A new bucket, s3://NAME."""
    use(server)
    name = f"b-{os.urandom(6).hex()}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def spoilt(server: str, bucket: str, use: Use) -> Iterator[Callable[..., str]]:
    """spoilt(*faults): the same bucket, behind a proxy with these faults."""
    with_faults: list[Any] = []

    def spoil(*faults: Fault) -> str:
        proxy = spoiling(server, *faults)
        use(proxy.__enter__())
        with_faults.append(proxy)
        return bucket

    yield spoil
    for proxy in with_faults:
        proxy.__exit__(None, None, None)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Uploads in parts begin at 5 MiB, the least that S3 takes."""
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    return 5 << 20


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "place") if request.param == "local" else request.getfixturevalue("bucket") + "/place"


# -- what every store does --------------------------------------------------------------------------------------------


def test_bytes_come_back_whole_and_in_ranges(place: str) -> None:
    storage.write(f"{place}/a/x", b"0123456789")
    storage.write(f"{place}/a/x", b"9876543210")
    assert storage.read(f"{place}/a/x") == b"9876543210"
    assert storage.read_range(f"{place}/a/x", 2, 3) == b"765"
    with pytest.raises(StorageError, match="truncated: 2 of 4 bytes at offset 8"):
        storage.read_range(f"{place}/a/x", 8, 4)
    with pytest.raises(MissingError):
        storage.read(f"{place}/a/y")


def test_listings_know_files_and_folders(place: str) -> None:
    for name in ("b/x", "b/c/y", "b/c/d/z", "bb/w"):
        storage.write(f"{place}/{name}", name.encode())
    assert storage.names(place) == ["b", "bb"]
    assert storage.names(f"{place}/b/") == ["c", "x"]
    assert storage.names(f"{place}/none") == []
    assert storage.sizes(f"{place}/b") == {"x": 3}
    assert [(e.name, e.num_bytes) for e in storage.walk(f"{place}/b")] == [("c/d/z", 7), ("c/y", 5), ("x", 3)]
    assert [storage.exists(f"{place}/{n}") for n in ("b", "b/x", "b/", "b/y", "bbb")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_deleting_takes_what_is_below_and_no_neighbour(place: str) -> None:
    for name in ("b/x", "b/c/y", "bb/w", "b.txt"):
        storage.write(f"{place}/{name}", b"1")
    storage.delete(f"{place}/b")
    storage.delete(f"{place}/never-there")
    assert [e.name for e in storage.walk(place)] == ["b.txt", "bb/w"]
    storage.delete(f"{place}/b.txt")
    assert storage.names(place) == ["bb"]


def test_of_racing_creators_one_wins_everywhere(place: str) -> None:
    won: list[int] = []

    def race(i: int) -> None:
        if storage.create(f"{place}/claim", str(i).encode()):
            won.append(i)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(won) == 1
    assert storage.read(f"{place}/claim") == str(won[0]).encode()


def test_a_probe_leaves_nothing(place: str) -> None:
    storage.check_writable(place)
    assert storage.walk(place) == []


def test_more_objects_than_a_page_are_listed_and_deleted(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client, call = s3._client(), s3._call
    for i in range(7):
        client.put_object(Bucket=bucket[5:], Key=f"many/{i}", Body=b"")
    monkeypatch.setattr(
        s3,
        "_call",
        lambda uri, verb, method, **k: call(uri, verb, method, **k, **({"MaxKeys": 3} if "list" in method else {})),
    )
    assert len(storage.walk(f"{bucket}/many")) == 7
    assert storage.names(f"{bucket}/many") == [str(i) for i in range(7)]
    storage.delete(f"{bucket}/many")
    assert storage.walk(bucket) == []


def test_a_whole_bucket_is_never_deleted(bucket: str) -> None:
    storage.write(f"{bucket}/x", b"1")
    for uri in (bucket, f"{bucket}/"):
        with pytest.raises(StorageError, match="a whole bucket is never deleted"):
            storage.delete(uri)
    assert storage.exists(f"{bucket}/x")


# -- faults -----------------------------------------------------------------------------------------------------------


def big(num_bytes: int) -> bytes:
    return os.urandom(num_bytes)


def unfinished(bucket: str) -> list[Any]:
    return s3._client().list_multipart_uploads(Bucket=bucket[5:]).get("Uploads", [])


def test_large_objects_go_up_in_parts_and_come_down_whole(bucket: str, small_parts: int) -> None:
    data = big(2 * small_parts + 123)
    storage.write(f"{bucket}/big", data)
    assert storage.walk(bucket)[0].tag == f'"{s3._etag(data)}"'
    assert s3._etag(data).endswith("-3")
    assert storage.read(f"{bucket}/big") == data


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", "partNumber=2", "403 AccessDenied"),
        Fault("PUT", "partNumber=2", "503 SlowDown"),
        Fault("POST", "uploadId=", "403 AccessDenied"),
        Fault("POST", "uploadId=", "500 InternalError"),
    ],
    ids=lambda f: f"{f.path} {f.do}",
)
def test_an_upload_that_is_refused_is_said_and_leaves_nothing(
    spoilt: Callable[..., str], small_parts: int, fault: Fault
) -> None:
    bucket = spoilt(fault)
    with pytest.raises(StorageError, match=r"cannot write|not allowed to write"):
        storage.write(f"{bucket}/big", big(2 * small_parts + 1))
    assert not storage.exists(f"{bucket}/big")
    assert unfinished(bucket) == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", "partNumber=2", "503 SlowDown", times=2),
        Fault("POST", "uploadId=", "500 InternalError", times=2),
        Fault("POST", "uploadId=", "200 InternalError", times=1),
        Fault("PUT", "partNumber=1", "lost", times=1),
        Fault("PUT", "small", "503 SlowDown", times=3),
        Fault("PUT", "small", "lost", times=1),
    ],
    ids=lambda f: f"{f.method} {f.path} {f.do}",
)
def test_a_passing_fault_is_outlived(spoilt: Callable[..., str], small_parts: int, fault: Fault) -> None:
    bucket, data = spoilt(fault), big(small_parts + 7)
    storage.write(f"{bucket}/big", data)
    storage.write(f"{bucket}/small", data[:100])
    assert fault.met > fault.times
    assert storage.read(f"{bucket}/big") == data
    assert storage.read(f"{bucket}/small") == data[:100]


@pytest.mark.parametrize("name", ["small", "big"])
def test_bytes_that_were_changed_on_their_way_are_noticed(
    spoilt: Callable[..., str], small_parts: int, name: str
) -> None:
    bucket = spoilt(Fault("PUT", name, "change"))
    with pytest.raises(UnavailableError, match="the stored object differs from the uploaded data"):
        storage.write(f"{bucket}/{name}", big(100 if name == "small" else small_parts + 1))


def test_a_store_whose_etag_is_no_md5_is_read_back(spoilt: Callable[..., str]) -> None:
    fault = Fault("PUT", "/x", "etag")
    read = Fault("GET", "/x", "cut", times=0)  # counts
    bucket = spoilt(fault, read)
    storage.write(f"{bucket}/x", b"12345")
    assert (fault.met, read.met) == (1, 1)


def test_a_claim_whose_answer_was_lost_is_still_ours(spoilt: Callable[..., str]) -> None:
    fault = Fault("PUT", "claim", "lost", times=1)
    bucket = spoilt(fault)
    assert storage.create(f"{bucket}/claim", b"mine")
    assert fault.met == 2
    assert not storage.create(f"{bucket}/claim", b"yours")


@pytest.mark.parametrize("num_bytes", [1000, 6 << 20], ids=["small", "large"])
def test_a_body_that_is_cut_is_asked_for_again(spoilt: Callable[..., str], small_parts: int, num_bytes: int) -> None:
    bucket, data = spoilt(Fault("GET", "/x", "cut", times=2)), big(num_bytes)
    storage.write(f"{bucket}/x", data)
    assert storage.read(f"{bucket}/x") == data
    assert storage.read_range(f"{bucket}/x", 100, 500) == data[100:600]


@pytest.mark.parametrize("num_bytes", [5, 6 << 20], ids=["small", "large"])
def test_a_body_that_is_always_cut_is_an_outage(spoilt: Callable[..., str], small_parts: int, num_bytes: int) -> None:
    bucket = spoilt(Fault("GET", "/x", "cut"))
    storage.write(f"{bucket}/x", big(num_bytes))
    with pytest.raises(UnavailableError, match="cannot read"):
        storage.read(f"{bucket}/x")
    with pytest.raises(UnavailableError, match="cannot read"):
        storage.read_range(f"{bucket}/x", 0, 5)


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_missing_bucket_is_named(bucket: str) -> None:
    for work in (lambda: storage.read("s3://not-there/x"), lambda: storage.check_writable("s3://not-there/runs")):
        with pytest.raises(StorageError, match=r"has no bucket 'not-there'.*Create the bucket or correct the URI"):
            work()


def test_an_endpoint_that_does_not_answer_is_named(use: Use) -> None:
    use("http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"http://127.0.0.1:9 does not answer .*Check AWS_ENDPOINT_URL"):
        storage.read("s3://bucket/x")


def test_no_credentials_is_one_message(use: Use, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(server, AWS_EC2_METADATA_DISABLED="true", AWS_SHARED_CREDENTIALS_FILE="/none", AWS_CONFIG_FILE="/none")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match=r"no credentials for S3 .*Set AWS_ACCESS_KEY_ID"):
        storage.read("s3://bucket/x")
    use(server, AWS_PROFILE="nobody", AWS_CONFIG_FILE="/none", AWS_SHARED_CREDENTIALS_FILE="/none")
    with pytest.raises(StorageError, match=r"nobody.*AWS_PROFILE"):
        storage.read("s3://bucket/x")


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[str, dict[str, str]]]:
    """(address, environment of a user who may only read) of a server that checks keys, signatures and policies."""
    with guarded_s3.serving() as (address, reader):
        root = boto3.client("s3", endpoint_url=address, **guarded_s3.ROOT)
        root.create_bucket(Bucket="guarded")
        root.put_object(Bucket="guarded", Key="x", Body=b"12345")
        guarded_s3.lock(address)
        yield address, reader


def test_the_doctor_knows_a_store_that_lets_a_second_writer_win(spoilt: Callable[..., str]) -> None:
    place = spoilt() + "/run"
    assert [f.severity for f in storage_of(place)] == ["ok", "ok"]
    place = spoilt(Fault("PUT", "claim", "unconditional")) + "/run"
    (error,) = [f for f in storage_of(place) if f.severity == "error"]
    assert "ignores If-None-Match" in error.text
    assert storage.names(place) == []


def test_the_doctor_says_what_a_reader_may_not(guarded: tuple[str, dict[str, str]], use: Use) -> None:
    use(guarded[0], **guarded[1])
    (error,) = [f for f in storage_of("s3://guarded/runs") if f.severity == "error"]
    assert "not allowed to write there" in error.text


def test_refused_credentials_are_one_message(guarded: tuple[str, dict[str, str]], use: Use) -> None:
    use(guarded[0], AWS_ACCESS_KEY_ID="AKIAWRONG", AWS_SECRET_ACCESS_KEY="wrong")
    with pytest.raises(StorageError, match=r"rejects these credentials \(InvalidAccessKeyId\). Renew"):
        storage.read("s3://guarded/x")
    use(guarded[0], **{**guarded[1], "AWS_SECRET_ACCESS_KEY": "wrong"})
    with pytest.raises(StorageError, match=r"rejects these credentials \(SignatureDoesNotMatch\). Renew") as told:
        storage.read("s3://guarded/x")
    assert "wrong" not in str(told.value)  # no secret in a message


def test_a_place_that_may_only_be_read_is_one_message(guarded: tuple[str, dict[str, str]], use: Use) -> None:
    use(guarded[0], **guarded[1])
    assert storage.read("s3://guarded/x") == b"12345"
    with pytest.raises(
        StorageError, match=r"s3://guarded/runs: not allowed to write there \(AccessDenied\).*s3:PutObject"
    ):
        storage.check_writable("s3://guarded/runs")


def test_other_stores_than_aws_get_checksums_only_where_required(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    def setting() -> str:
        s3._client_of.cache_clear()
        return s3._client().meta.config.request_checksum_calculation

    use("http://127.0.0.1:9")
    assert setting() == "when_required"
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_SUPPORTED")
    assert setting() == "when_supported"
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert setting() == "when_supported"


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_s3(bucket: str, street_data: str) -> str:
    """The prepared streets, copied."""
    for entry in storage.walk(street_data):
        storage.write(f"{bucket}/data/{entry.name}", storage.read(f"{street_data}/{entry.name}"))
    return bucket


def run_of(data: str, run: str, **sections: Any) -> config.Config:
    return config.from_tree(tree(data, run, **sections), "test")


def test_a_run_on_s3_is_the_run_on_files_bit_for_bit(on_s3: str, street_data: str, tmp_path: Path) -> None:
    here, there = run_of(street_data, str(tmp_path / "run")), run_of(f"{on_s3}/data", f"{on_s3}/run")
    a, b = fit(here, ALONE), fit(there, ALONE)
    assert (a["miou"], a["step"]) == (b["miou"], b["step"])
    ours, theirs = snapshot.load_model(a["best_checkpoint"]), snapshot.load_model(b["best_checkpoint"])
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert fit(there, ALONE) == b  # finished: left alone
    assert {"run.json", "config.yaml", "metrics", "logs", "checkpoints", "best.json", "attempts", "previews"} == set(
        storage.names(f"{on_s3}/run")
    )


def test_a_run_whose_uploads_are_refused_never_ends_well(
    on_s3: str, server: str, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    with spoiling(server, Fault("PUT", "model.safetensors", "403 AccessDenied")) as address:
        use(address)
        with pytest.raises(StorageError, match="its checkpoint could not be written"):
            fit(run_of(f"{on_s3}/data", f"{on_s3}/run"), ALONE)
    use(server)
    state = record.load(f"{on_s3}/run")
    assert state is not None and state["state"] == "FAILED"
    assert checkpoints.committed(f"{on_s3}/run") == []
    ended = fit(run_of(f"{on_s3}/data", f"{on_s3}/run"), ALONE)  # the storage is mended: the same command
    assert (ended["state"], ended["restarts"]) == ("SUCCEEDED", 1)


def test_a_run_outlives_refusals_that_pass(on_s3: str, server: str, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = (
        Fault("PUT", "model.safetensors", "503 SlowDown", times=6),  # more than the client's own tries
        Fault("PUT", "COMMITTED", "lost", times=1),
        Fault("GET", "parquet", "cut", times=3),
    )
    with spoiling(server, *faults) as address:
        use(address)
        ended = fit(run_of(f"{on_s3}/data", f"{on_s3}/run"), ALONE)
        assert all(f.met > f.times for f in faults)
    use(server)
    assert ended["state"] == "SUCCEEDED"
    for uri in checkpoints.committed(f"{on_s3}/run"):
        checkpoints.verify(uri)


@pytest.mark.parametrize("model", [SEGFORMER, pytest.param(UNET, marks=pytest.mark.long)], ids=["segformer", "unet"])
def test_export_predictions_and_initial_weights_live_in_the_bucket_too(
    on_s3: str, street_folder: Path, model: dict[str, Any]
) -> None:
    fit(run_of(f"{on_s3}/data", f"{on_s3}/run", model=model, train={"num_steps": 2}), ALONE)
    trained = load_trained(f"{on_s3}/run", ALONE.device)
    export(trained, f"{on_s3}/export")
    export(trained, f"{on_s3}/export")  # of the same run: made anew
    assert {"README.md", "config.json", "model.safetensors", "segdist.json"} <= set(storage.names(f"{on_s3}/export"))
    with pytest.raises(UserError, match=r"is not an export of segdist. Choose an empty destination"):
        export(trained, f"{on_s3}/data")

    for source in (f"{on_s3}/export", f"{on_s3}/run", trained.uri):
        begun = {**model, "weights": source} | ({"size": None} if model is SEGFORMER else {})
        started = build(config.from_tree(tree("-", "-", model=begun), "test").model, trained.labels.names)
        assert all(torch.equal(v, started.state_dict()[k]) for k, v in trained.model.state_dict().items())
        assert started.notes[0] == f"initial weights from {trained.uri if source.endswith('run') else source}"

    for name in ("0000.jpg", "0001.jpg"):
        storage.write(f"{on_s3}/album/{name}", (street_folder / "images" / name).read_bytes())
    there = predict_files(trained, [f"{on_s3}/album"], f"{on_s3}/out")
    assert [p["mask"] for p in there] == [f"{on_s3}/out/0000.png", f"{on_s3}/out/0001.png"]
    here = predict_files(trained, [str(street_folder / "images" / "0000.jpg")], f"{on_s3}/one")
    pixels = [np.array(Image.open(io.BytesIO(storage.read(one[0]["mask"])))) for one in (there, here)]
    assert np.array_equal(*pixels)
    made = storage.read(there[0]["mask"])
    storage.write(f"{on_s3}/album/0001.jpg", (street_folder / "images" / "0002.jpg").read_bytes())
    again = predict_files(trained, [f"{on_s3}/album"], f"{on_s3}/out")
    assert again[0] == there[0] and storage.read(there[0]["mask"]) == made
    assert again[1]["shares"] != there[1]["shares"]
    deep = predict_files(trained, [f"{on_s3}/al*/**/000[01].jpg"], f"{on_s3}/deep")
    assert [row["shares"] for row in deep] == [row["shares"] for row in again]
    assert np.array_equal(classify(load_model(f"{on_s3}/export", ALONE.device), PHOTO), classify(trained, PHOTO))
    with pytest.raises(UserError, match="no such image"):
        predict_files(trained, [f"{on_s3}/nothing"], f"{on_s3}/out2")
    with pytest.raises(UserError, match=r"\*\.tif: no image matches this pattern. s3://.*/album contains 2 \.jpg"):
        predict_files(trained, [f"{on_s3}/album/*.tif"], f"{on_s3}/out2")


def test_a_source_in_a_bucket_is_prepared_as_its_copy_on_disk_is(
    bucket: str, street_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in storage.walk(str(street_folder)):
        storage.write(f"{bucket}/photos/{entry.name}", storage.read(f"{street_folder}/{entry.name}"))
    names = f"{bucket}/photos/names.txt"
    prepare(str(street_folder), str(tmp_path / "data"), names=str(street_folder / "names.txt"))
    prepare(f"{bucket}/photos", f"{bucket}/data", names=names)
    here, there = indices.load(str(tmp_path / "data")), indices.load(f"{bucket}/data")
    assert there.splits == here.splits
    assert (there.name, there.source) == ("photos", "folder: photos")
    again = storage.walk(f"{bucket}/data")
    prepare(f"{bucket}/photos", f"{bucket}/data", names=names)
    assert "is already prepared from this source" in capsys.readouterr().err
    assert storage.walk(f"{bucket}/data") == again
    storage.write(f"{bucket}/photos/images/0000.jpg", (street_folder / "images" / "0001.jpg").read_bytes())
    with pytest.raises(DataError, match="holds another prepared dataset"):
        prepare(f"{bucket}/photos", f"{bucket}/data", names=names)


def test_a_broken_picture_in_a_bucket_is_named(bucket: str, street_folder: Path) -> None:
    for entry in storage.walk(str(street_folder)):
        storage.write(f"{bucket}/photos/{entry.name}", storage.read(f"{street_folder}/{entry.name}"))
    storage.write(f"{bucket}/photos/masks/0003.png", storage.read(f"{bucket}/photos/masks/0003.png")[:90])
    with pytest.raises(DataError, match=rf"{bucket}/photos/masks/0003.png: .*Replace or remove it"):
        prepare(f"{bucket}/photos", f"{bucket}/data", names=f"{bucket}/photos/names.txt")
    assert not storage.exists(f"{bucket}/data/index.json")
    with pytest.raises(DataError, match="this folder does not exist"):
        prepare(f"{bucket}/album", f"{bucket}/data")


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Background writes are tried twice, at once."""
    monkeypatch.setattr("segdist.runs.run_log.BackgroundWriter", lambda warn: BackgroundWriter(warn, pauses=(0.01,)))


@pytest.mark.parametrize(
    ("path", "what"),
    [("/metrics/", "metrics 1"), ("/logs/", "log 1"), ("/best.json", "scores 2"), ("/run.json", "run.json")],
    ids=["metrics", "logs", "best", "run"],
)
def test_nothing_that_is_missing_passes_for_a_success(
    on_s3: str, server: str, use: Use, monkeypatch: pytest.MonkeyPatch, path: str, what: str
) -> None:
    quick(monkeypatch)
    run = run_of(f"{on_s3}/data", f"{on_s3}/run", train={"num_steps": 2})
    with spoiling(server, Fault("PUT", f"/run{path}", "403 AccessDenied")) as address:
        use(address)
        with pytest.raises(StorageError, match=f"but .*{what}.* could not be written"):
            fit(run, ALONE)
    use(server)
    state = record.load(f"{on_s3}/run")
    assert state is None or state["state"] == "FAILED"
    assert fit(run, ALONE)["state"] == "SUCCEEDED"


@pytest.mark.parametrize("refused", [("PUT", "partNumber=2"), ("POST", "uploadId=")], ids=["part", "complete"])
def test_a_run_whose_uploads_in_parts_are_refused_never_ends_well(
    on_s3: str, server: str, use: Use, monkeypatch: pytest.MonkeyPatch, small_parts: int, refused: tuple[str, str]
) -> None:
    quick(monkeypatch)
    fields = {"train": {"num_steps": 1}, "optim": {"warmup_steps": 0}, "model": {**SEGFORMER, "size": "b0"}}
    run = run_of(f"{on_s3}/data", f"{on_s3}/run", **fields)
    always, once = Fault(*refused, "403 AccessDenied"), Fault(*refused, "500 InternalError", times=1)
    with spoiling(server, always) as address:
        use(address)
        with pytest.raises(StorageError, match="its checkpoint could not be written"):
            fit(run, ALONE)
        assert always.met > 1
    with spoiling(server, once) as address:
        use(address)
        ended = fit(run, ALONE)
        assert once.met > once.times
    use(server)
    assert ended["state"] == "SUCCEEDED"
    checkpoints.verify(ended["best_checkpoint"])


def test_an_outage_at_a_restart_is_no_damaged_checkpoint(
    on_s3: str, server: str, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(f"{on_s3}/data", f"{on_s3}/run")
    wishes = iter([None, "stop"])
    stopped = fit(run, ALONE, notice=lambda: next(wishes, None))  # type: ignore[arg-type, return-value]
    monkeypatch.setattr(storage, "_RETRY_SECONDS", 0.0)
    with spoiling(server, Fault("GET", "COMMITTED", "503 SlowDown")) as address:
        use(address)
        with pytest.raises(UnavailableError, match="503 SlowDown"):
            fit(run, ALONE)
    use(server)
    ended = fit(run, ALONE)
    assert (stopped["state"], ended["state"], ended["restarts"]) == ("PREEMPTED", "SUCCEEDED", 1)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_ENDPOINT_URL": "localhost:9000"}, "invalid settings for S3 .*must begin with http:// or https://"),
        ({"AWS_REQUEST_CHECKSUM_CALCULATION": "foo"}, "invalid settings for S3 .*foo"),
    ],
    ids=["endpoint", "checksum"],
)
def test_wrong_settings_are_one_message(server: str, use: Use, environment: dict[str, str], message: str) -> None:
    use(server, **environment)
    with pytest.raises(StorageError, match=message):
        storage.read("s3://bucket/x")


def test_the_region_is_what_the_remedy_says(server: str, use: Use) -> None:
    use(server, AWS_REGION="us-west-2", AWS_DEFAULT_REGION="eu-west-1")
    assert s3._client().meta.region_name == "us-west-2"
