"""An in-memory S3 server on loopback (moto) for the demo and the tests: `with serving() as address:`.

It runs in its own process, which ends with the process that started it. It accepts any credentials.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def serving(python: str = sys.executable, **environment: str) -> Iterator[str]:
    """Start the server and yield its address, http://127.0.0.1:PORT."""
    process = subprocess.Popen(
        [python, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,  # Ctrl-C must not stop the server: the run still commits a checkpoint
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(timeout=20)


def settings(address: str) -> dict[str, str]:
    """Return the environment variables that point S3 clients to this server."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "AWS_REGION": "us-east-1",
    }


def main() -> None:
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(*sys.argv[1:2] or ["127.0.0.1"], port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()  # until the parent closes the pipe or dies
    server.stop()


if __name__ == "__main__":
    main()
