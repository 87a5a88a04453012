"""Foreign layouts: which image belongs to which mask, in which split, and what the masks' values mean.

One importer a module, all of one interface: `find(source, ask) -> Found`. None reads a picture; `prepare` does, by the pair.
"""

from segdist.data.importers.folder import CAMVID, FOLDER
from segdist.data.importers.hub import HUB
from segdist.data.importers.layout import Layout
from segdist.data.importers.segments import SEGMENTS

LAYOUTS: dict[str, Layout] = {
    "folder": FOLDER,
    "camvid": CAMVID,
    "segments": SEGMENTS,
    "hub": HUB,
}
