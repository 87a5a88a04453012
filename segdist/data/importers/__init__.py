"""Foreign layouts: which image belongs to which mask, in which split, and what the masks' values mean.

One importer a module, all of one interface: `find(source, ask) -> Found`. None reads a picture; `prepare` does, by the pair.
"""

from segdist.data.importers.coco import COCO
from segdist.data.importers.folder import CAMVID, FOLDER
from segdist.data.importers.labelme import LABELME
from segdist.data.importers.layout import Layout

LAYOUTS: dict[str, Layout] = {
    "folder": FOLDER,
    "camvid": CAMVID,
    "labelme": LABELME,
    "coco": COCO,
}
