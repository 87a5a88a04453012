"""The Oxford-IIIT Pets: trimaps of cats and dogs (1 pet, 2 background, 3 the border between them).

Some images/*.jpg are PNG or GIF inside, and two are JPEGs that strict decoders refuse; `files.read_image` looks at the content.
trainval.txt is cut by the seed into train and val, as is usual, for the authors name no validation set.
"""

from __future__ import annotations

from segdist import storage
from segdist.data.importers.layout import ImportOptions, ImportPlan, Layout, Listing, Splits, split_off
from segdist.data.importers.release import SUFFIXES, check_disjoint, listed, pairs_of, root_of
from segdist.data.presets import CONTRACTS
from segdist.errors import DataError


def find(source: str, ask: ImportOptions) -> ImportPlan:
    """The pairs that annotations/{trainval,test}.txt name; images that they do not name are left alone."""
    listing = Listing(source, SUFFIXES)
    root = root_of(listing, ("annotations/trimaps",), "the layout of the Oxford-IIIT Pets")
    images, masks = listing.by_stem(f"{root}images"), listing.by_stem(f"{root}annotations/trimaps")
    if not images:
        raise DataError(
            f"{storage.join(source, root + 'images')}: this folder does not exist, or holds no images; unpack images.tar.gz "
            "beside annotations.tar.gz"
        )
    splits: Splits = {}
    for name in ("trainval", "test"):
        path = f"{root}annotations/{name}.txt"
        if listing.get(path):
            pairs = pairs_of(listing, listed(listing, path, columns=True), path, images, masks)
            splits |= split_off(pairs, ask) if name == "trainval" else {name: pairs}
    if "train" not in splits:
        address = storage.join(source, f"{root}annotations/trainval.txt")
        raise DataError(f"{address}: this list is not there; unpack annotations.tar.gz again")
    check_disjoint(splits, source)
    return ImportPlan(splits, CONTRACTS["pets"])


PETS = Layout(
    find,
    "Oxford-IIIT Pets: pet, background and the border between them (without border: --names pets-binary)",
    "images/, annotations/trimaps/, annotations/trainval.txt (and test.txt); or a folder above",
    "CC BY-SA 4.0 (Oxford-IIIT Pets, Parkhi et al. 2012)",
)
