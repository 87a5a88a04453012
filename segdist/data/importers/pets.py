"""Oxford-IIIT Pets: trimaps of cats and dogs (1 pet, 2 background, 3 the border between them).

Some images/*.jpg contain PNG or GIF, and two are JPEGs that strict decoders reject; `files.read_image` checks the content.
trainval.txt is divided by the seed into train and val, as is usual, because the authors define no validation set.
"""

from __future__ import annotations

from segdist import storage
from segdist.data.importers.layout import ImportOptions, ImportPlan, Layout, Listing, Splits, split_off
from segdist.data.importers.published import SUFFIXES, check_disjoint, pairs_of, read_list, root_of
from segdist.data.presets import CONTRACTS
from segdist.errors import DataError


def find(source: str, options: ImportOptions) -> ImportPlan:
    """Return the pairs listed in annotations/{trainval,test}.txt; other images are ignored."""
    listing = Listing(source, SUFFIXES)
    root = root_of(listing, ("annotations/trimaps",), "the layout of the Oxford-IIIT Pets")
    images, masks = listing.by_stem(f"{root}images"), listing.by_stem(f"{root}annotations/trimaps")
    if not images:
        raise DataError(
            f"{storage.join(source, root + 'images')}: this folder does not exist, or holds no images. Unpack images.tar.gz "
            "beside annotations.tar.gz"
        )
    splits: Splits = {}
    for name in ("trainval", "test"):
        path = f"{root}annotations/{name}.txt"
        if listing.get(path):
            pairs = pairs_of(listing, read_list(listing, path, columns=True), path, images, masks)
            splits |= split_off(pairs, options) if name == "trainval" else {name: pairs}
    if "train" not in splits:
        address = storage.join(source, f"{root}annotations/trainval.txt")
        raise DataError(f"{address}: this list does not exist. Unpack annotations.tar.gz again")
    check_disjoint(splits, source)
    return ImportPlan(splits, CONTRACTS["pets"])


PETS = Layout(
    find,
    "Oxford-IIIT Pets: pet, background and the border between them (without the border: --names pets-binary)",
    "images/, annotations/trimaps/, annotations/trainval.txt (and test.txt); or a folder above",
    "CC BY-SA 4.0 (Oxford-IIIT Pets, Parkhi et al. 2012)",
)
