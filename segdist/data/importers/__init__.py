"""Importers: how foreign layouts pair images with masks, name splits and encode classes.

LAYOUTS lists the importers. All have the same interface, `find(source, options) -> ImportPlan`, and share the other modules
here. An importer pairs files but decodes no image; `prepare` decodes them, pair by pair.
"""

from segdist.data.importers.ade20k import ADE20K
from segdist.data.importers.cityscapes import CITYSCAPES
from segdist.data.importers.coco import COCO
from segdist.data.importers.folder import CAMVID, FOLDER
from segdist.data.importers.hub import HUB
from segdist.data.importers.labelme import LABELME
from segdist.data.importers.layout import Layout
from segdist.data.importers.pets import PETS
from segdist.data.importers.segments_ai import SEGMENTS
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
