"""Label contracts of COCO-Stuff's masks, from its authors' labels.txt (github.com/nightrome/cocostuff).

Its class maps hold the category ID minus one, and 255 for unlabelled. The maps of the Stuff challenge ("pixelmaps") hold the ID
itself, 183 for every thing, and 0 for unlabelled. Of COCO's IDs 1..91, eleven were never annotated and are not classes.
"""

from __future__ import annotations

from segdist.data.labels import Labels, plain

_THINGS = (  # IDs 1..91
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,street sign,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,hat,backpack,umbrella,shoe,eye glasses,"
    "handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
    "tennis racket,bottle,plate,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,"
    "pizza,donut,cake,chair,couch,potted plant,bed,mirror,dining table,window,desk,toilet,door,tv,laptop,mouse,remote,"
    "keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,blender,book,clock,vase,scissors,teddy bear,hair drier,"
    "toothbrush,hair brush"
).split(",")
_NEVER_ANNOTATED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
_STUFF = (  # IDs 92..182
    "banner,blanket,branch,bridge,building-other,bush,cabinet,cage,cardboard,carpet,ceiling-other,ceiling-tile,cloth,clothes,"
    "clouds,counter,cupboard,curtain,desk-stuff,dirt,door-stuff,fence,floor-marble,floor-other,floor-stone,floor-tile,"
    "floor-wood,flower,fog,food-other,fruit,furniture-other,grass,gravel,ground-other,hill,house,leaves,light,mat,metal,"
    "mirror-stuff,moss,mountain,mud,napkin,net,paper,pavement,pillow,plant-other,plastic,platform,playingfield,railing,"
    "railroad,river,road,rock,roof,rug,salad,sand,sea,shelf,sky-other,skyscraper,snow,solid-other,stairs,stone,straw,"
    "structural-other,table,tent,textile-other,towel,tree,vegetable,wall-brick,wall-concrete,wall-other,wall-panel,"
    "wall-stone,wall-tile,wall-wood,water-other,waterdrops,window-blind,window-other,wood"
).split(",")


def class_maps() -> Labels:
    """Return the contract of `stuffthingmaps`: 80 things and 91 kinds of stuff."""
    names = {i: n for i, n in enumerate([*_THINGS, *_STUFF]) if i + 1 not in _NEVER_ANNOTATED}
    return plain(list(names.values()), raw=list(names))


def pixel_maps() -> Labels:
    """Return the contract of the Stuff challenge: 91 kinds of stuff, and all things as `other`."""
    return plain([*_STUFF, "other"], void=(0, 255), raw=list(range(92, 184)))
