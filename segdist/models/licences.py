"""Licences of initial weights: what their model card says, and known licences of weights whose card says only "other".

A licence is a JSON-able dict. `name` is an SPDX-like ID of the Hub or the licence's own name; several are joined by "and".
`link` and `note` are None if unknown. `id` is the single `license` of a card on the Hub, so that another card there may state
the same; it is None if the card said "other" or several, or if there was no such card, and it is absent in older records. A
licence is stored with the weights: in checkpoints, exports and their cards.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import yaml

Licence = dict[str, Any]


def _licence(name: str, link: str | None = None, note: str | None = None, hub_id: str | None = None) -> Licence:
    return {"name": name, "link": link, "note": note, "id": hub_id}


_NVIDIA = _licence(
    "NVIDIA Source Code License for SegFormer",
    "https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
    "research and evaluation only, not for commercial use",
)
_APPLE = _licence("Apple Sample Code License", "https://github.com/apple/ml-cvnets/blob/main/LICENSE")
_APACHE = _licence("apache-2.0", hub_id="apache-2.0")
KNOWN = {  # repositories on the Hub -> licence, as stated on their cards
    "nvidia/mit-b[0-5]": _NVIDIA,
    "nvidia/segformer-b[0-5]-*": _NVIDIA,
    "smp-hub/mit_b[0-5].*": _NVIDIA,  # the same encoders for segmentation-models-pytorch
    "microsoft/beit-*": _APACHE,
    "facebook/data2vec-vision-*": _APACHE,
    "apple/mobilevit-*": _APPLE,
    "apple/deeplabv3-mobilevit-*": _APPLE,
}


def of(repo: str | None, readme: str | None) -> Licence | None:
    """Return the licence of weights from this Hub repository (None: from elsewhere) with this README.md, or None if unknown."""
    known = next((found for pattern, found in KNOWN.items() if fnmatchcase(repo or "", pattern)), None)
    said = _of_readme(readme, on_hub=repo is not None) if readme else None
    if said is None or (said["name"] == "other" and known):
        return known or said
    return said | {"note": known["note"]} if known else said


def named(name: str | None) -> Licence | None:
    """Return the licence of this name, or None if there is no name."""
    return _licence(name) if name else None


def _of_readme(text: str, on_hub: bool) -> Licence | None:
    """Read the YAML header of a model card. Its `license` is an ID or a list of IDs."""
    parts = text.lstrip().split("---", 2)
    if len(parts) < 3 or parts[0]:
        return None
    try:
        card = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    if not isinstance(card, dict):
        return None
    said = card.get("license")
    ids = [one for each in (said if isinstance(said, list) else [said]) if (one := _text(each))]
    if not ids:
        return None
    own = _text(card.get("license_name")) or "other"
    name = " and ".join(own if each == "other" else each for each in ids)
    single = on_hub and len(ids) == 1 and ids != ["other"]
    return _licence(name, _text(card.get("license_link")), hub_id=ids[0] if single else None)


def _text(value: Any) -> str | None:
    """Return a non-blank string without surrounding whitespace, and None for anything else."""
    return value.strip() or None if isinstance(value, str) else None


def describe(licence: Licence) -> str:
    """Return the licence's name, with its note in parentheses."""
    return licence["name"] + (f" ({licence['note']})" if licence["note"] else "")
