"""The tutorials of docs/tutorials, walked by their own commands on drawn data in the original layout.

`python tests/tutorials.py voc2007 FOLDER` draws small data into FOLDER and runs what the page says, in this process, with
weights from a Hub on loopback. With `--pictures docs/tutorials` it draws and trains more, and puts the page's pictures there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "demo"), str(Path(__file__).parent)]

import forks
import hub_server
import web_server

TOKEN = "hf_of_a_test"


@dataclass(frozen=True)
class Tutorial:
    """How a page is walked: what is drawn, and what else `segdist train` is told."""

    small: tuple[str, ...]  # for tests
    large: tuple[str, ...]  # for pictures
    curves: bool = False  # whether the page shows them


_SEGFORMER = ("optim.lr=2e-3", "optim.head_lr_factor=1", "model.dropout=0", "model.drop_path=0")
_SMALL = (
    "scale.device=cpu", "data.crop_size=[64,96]", "train.num_steps=40", "train.global_batch_size=4",
    "train.micro_batch_size=4", "eval.every_steps=20", "checkpoint.every_steps=10", "io.loader_threads=2",
)  # fmt: skip
_LARGE = (
    "scale.device=cpu", "data.crop_size=[96,144]", "train.num_steps=300", "train.global_batch_size=8",
    "train.micro_batch_size=8", "eval.every_steps=30", "checkpoint.every_steps=30", "eval.batch_size=8",
)  # fmt: skip
_UNET = ("optim.lr=2e-3", "model.encoder=resnet18")
_SAME = ("data.image_size=null",)
TUTORIALS = {
    "scene_parse150": Tutorial((*_SMALL, *_SEGFORMER), (*_LARGE, *_SEGFORMER)),
    "sidewalk": Tutorial((*_SMALL, *_SEGFORMER, *_SAME), (*_LARGE, *_SEGFORMER, *_SAME)),
    "pets": Tutorial(
        (*_SMALL, *_SEGFORMER, *_SAME),
        (*_LARGE, *_SEGFORMER, *_SAME, "train.num_steps=600", "eval.every_steps=60"),
        curves=True,
    ),
    "voc2007": Tutorial((*_SMALL, *_UNET, *_SAME), (*_LARGE, *_UNET, *_SAME), curves=True),
}


def page(name: str) -> str:
    return (ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")


def commands(name: str) -> list[list[str]]:
    """The arguments of the `segdist` commands of a page's first block of sh."""
    block = re.findall(r"```sh\n(.*?)```", page(name), re.DOTALL)[0]
    return [shlex.split(line)[1:] for line in block.splitlines() if line.startswith("segdist ")]


def draw(name: str, folder: Path, web: web_server.Web, num: int, size: tuple[int, int]) -> None:
    """What a person has before the first command, in the current folder."""
    import tutorial_scenes as scenes

    if name == "scene_parse150":
        scenes.draw_ade20k(folder / "ADEChallengeData2016", num, size)
    elif name == "sidewalk":
        scenes.draw_release(folder / "release.json", web, num, size)
        for i, (image, _) in enumerate(scenes.scenes(3, size, 9)):
            scenes.save(image, folder / "photos" / f"{i}.jpg")
    elif name == "pets":
        scenes.draw_pets(folder / "oxford-iiit-pet", num, size)
    else:
        scenes.draw_voc(folder / "VOCdevkit" / "VOC2007", num, size)


def publish_weights(hub: Path) -> None:
    """Random weights of small models, always the same, by the names that the configs ask for."""
    import torch
    from safetensors.torch import save_file

    from segdist import models
    from segdist.config import Segformer, Smp

    torch.manual_seed(0)
    models.build(Segformer(size="tiny"), ["x", "y"]).net.save_pretrained(hub / "nvidia" / "mit-b0")
    encoder = models.build(Smp(encoder="resnet18"), ["x", "y"]).net.encoder.state_dict()
    repo = hub / "smp-hub" / "resnet18.imagenet"
    repo.mkdir(parents=True)
    head = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    save_file({k: v.contiguous() for k, v in encoder.items()} | head, repo / "model.safetensors")
    facts = {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "input_space": "RGB",
        "input_range": [0, 1],
    }
    (repo / "config.json").write_text(json.dumps(facts), encoding="utf-8")


@contextlib.contextmanager
def stopped_once(checkpoints: Path) -> Iterator[None]:
    """SIGTERM to this process, as soon as a run has committed its first checkpoint."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set() and not list(checkpoints.glob("*/COMMITTED")):
            time.sleep(0.01)
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield
    ended.set()
    thread.join()


def segdist(arguments: list[str]) -> int:
    """The exit code of a command, run in this process."""
    from segdist.cli import main

    print("$ segdist", shlex.join(arguments), file=sys.stderr, flush=True)
    sys.argv = ["segdist", *arguments]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def walk(name: str, folder: Path, overrides: tuple[str, ...], interrupt: bool) -> None:
    """Every command of the page, in `folder`; the training is stopped once and goes on, if `interrupt`."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    os.chdir(folder)
    for arguments in commands(name):
        if arguments[0] == "train":
            arguments = [*arguments, *overrides]
            if interrupt:
                with stopped_once(folder / "runs" / name / "checkpoints"):
                    assert segdist(arguments) == 75, "the first training was not stopped"
        assert segdist(arguments) == 0, arguments


def keep_pictures(name: str, folder: Path, into: Path) -> None:
    """The page's pictures, small enough for a repository."""
    from PIL import Image

    drawn = Image.open(folder / f"{name}.png").convert("RGB")
    drawn.thumbnail((drawn.width, 1150))
    drawn.save(into / f"{name}.jpg", quality=75, optimize=True)
    if TUTORIALS[name].curves:
        shutil.copy(folder / f"{name}-curves.png", into)


def main(name: str, folder: Path, pictures: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for variable in list(os.environ):
        if variable.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            del os.environ[variable]
    (folder / "hub").mkdir()
    with hub_server.serving(folder / "hub", {TOKEN: {"name": "OWNER"}}) as (url, _), web_server.serving({}) as web:
        places = {"HF_HOME": str(folder / "cache" / "hf"), "XDG_CACHE_HOME": str(folder / "cache")}
        os.environ.update(
            {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, **places}
        )
        forks.settings_again()  # of libraries that this process may have imported before it was forked
        publish_weights(folder / "hub")
        draw(name, folder, web, *((160, (144, 96)) if pictures else (32, (96, 64))))
        tutorial = TUTORIALS[name]
        walk(name, folder, tutorial.large if pictures else tutorial.small, interrupt=not pictures)
    if pictures:
        keep_pictures(name, folder, pictures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TUTORIALS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=Path)
    given = parser.parse_args()
    main(given.name, given.folder.absolute(), given.pictures and given.pictures.absolute())
