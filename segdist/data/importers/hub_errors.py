"""Translation of errors from `datasets` and the libraries below it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from segdist.errors import DataError, StorageError, UnavailableError

T = TypeVar("T")


def translate_errors(name: str, work: Callable[[], T]) -> T:
    """Call work(), which uses `datasets`, and turn its errors into ours."""
    try:
        return work()
    except Exception as error:  # datasets lets through any error of the libraries below it
        if isinstance(error, DataError | StorageError):
            raise
        raise _translated(name, error) from error


def script_message(name: str) -> str:
    return f"{name} is made by a Python script, which is never run (and which `datasets` no longer supports)"


def _translated(name: str, error: Exception) -> Exception:
    """Return our error: what went wrong, and the remedy."""
    import datasets

    text = " ".join(str(error).split())
    page = f"https://huggingface.co/datasets/{name}"
    if "Dataset scripts are no longer supported" in text:
        return DataError(f"{script_message(name)}. Convert it to Parquet by running its script yourself")
    if datasets.config.HF_HUB_OFFLINE and isinstance(error, OSError) and not Path(name).is_dir():
        return StorageError(
            f"{name}: not in the cache, and HF_HUB_OFFLINE=1 forbids downloading it from the Hub. Unset it, or give a folder"
        )
    if "is a gated dataset" in text or type(error).__name__ == "GatedRepoError":
        return StorageError(
            f"{name}: this dataset is gated. Accept its terms at {page}, and set HF_TOKEN to your token (or `hf auth login`)"
        )
    if "Revision" in text and "doesn't exist" in text:
        return DataError(f"{name}: {text}. See {page}/commits for its revisions")
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return StorageError(
            f"{name}: the Hub has no such dataset, or it is private. Correct the ID OWNER/NAME, or set HF_TOKEN to a token "
            "that can read it"
        )
    if "Config name is missing" in text or "BuilderConfig" in text:
        known = re.search(r"\[.*?\]", text)
        return DataError(f"{name}: its configurations are {known[0] if known else text}. Choose one with --subset")
    if type(error).__name__ in ("DataFilesNotFoundError", "EmptyDatasetError"):
        return DataError(
            f"{name}: holds no files that `datasets` reads. Give a dataset of Parquet, Arrow, images with metadata or similar"
        )
    if isinstance(error, ConnectionError | TimeoutError):
        return UnavailableError(f"{name}: the Hub does not answer ({text}). Try again later")
    cause = f": {error.__cause__}" if error.__cause__ else ""
    return DataError(
        f"{name}: `datasets` cannot read it ({type(error).__name__}: {text}{cause}). Correct its files, or try another version "
        "of `datasets`"
    )
