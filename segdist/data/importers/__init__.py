"""Foreign layouts: which image belongs to which mask, in which split, and what the masks' values mean.

One importer a module, all of one interface: `find(source, ask) -> Found`. None reads an image; `prepare` does, by the pair.
"""

from segdist.data.importers.ade20k import ADE20K
from segdist.data.importers.cityscapes import CITYSCAPES
from segdist.data.importers.coco import COCO
from segdist.data.importers.folder import CAMVID, FOLDER
from segdist.data.importers.hub import HUB
from segdist.data.importers.labelme import LABELME
from segdist.data.importers.layout import Layout
from segdist.data.importers.pets import PETS
from segdist.data.importers.segments import SEGMENTS
from segdist.data.importers.voc import VOC

__all__ = ["LAYOUTS", "files", "layout"]

LAYOUTS: dict[str, Layout] = {
    "folder": FOLDER,
    "camvid": CAMVID,
    "segments": SEGMENTS,
    "hub": HUB,
    "voc": VOC,
    "pets": PETS,
    "ade20k": ADE20K,
    "cityscapes": CITYSCAPES,
    "labelme": LABELME,
    "coco": COCO,
}
