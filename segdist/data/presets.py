"""Label contracts and palettes of public datasets, as their authors published them."""

from __future__ import annotations

from segdist.data.labels import Class, Color, Labels, generated_colors

# -- palettes: display colours by class number ------------------------------------------------------------------------

_ADE20K = (  # from the authors' toolkit: classes 0..149 as RRGGBB
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff0652"
    "8fff8cccff04ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0"
    "ffb8060aff47ff290a07ffffe0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff"
    "8c8c8cfa0a0f14ff001fff00ff1f00ffe00099ff000000ffff470000ebff00adff1f00ff0bc8c8ff520000fff5003dff"
    "00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff000052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ff"
    "ff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc200ff52000aff0070ff3300ff00c2ff007aff"
    "00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ffff001f00b8ff00d6ffff0070"
    "5cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ffff007afff500"
    "0abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cff"
    "b8ff000085ffffd60019c2c266ff005c00ff"
)
_CITYSCAPES = (
    "804080f423e8464646666699be9999999999faaa1edcdc006b8e2398fb984682b4dc143cff000000008e000046003c640050640000e6770b20"
)


def _colors(hex_digits: str) -> list[Color]:
    data = bytes.fromhex(hex_digits)
    return [(data[i], data[i + 1], data[i + 2]) for i in range(0, len(data), 3)]


def voc_colors(n: int) -> list[Color]:
    """Return PASCAL VOC's colour map. It deals the bits of the class number to red, green and blue, highest bit first."""
    return [
        tuple(sum(((k >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3))  # type: ignore[misc]
        for k in range(n)
    ]


PALETTES: dict[str, list[Color]] = {
    "ade20k": _colors(_ADE20K),
    "voc": voc_colors(256),
    "cityscapes": _colors(_CITYSCAPES),
    "generated": generated_colors(255),
}

# -- contracts --------------------------------------------------------------------------------------------------------

_ADE20K_NAMES = (
    "wall,building,sky,floor,tree,ceiling,road,bed,windowpane,grass,cabinet,sidewalk,person,earth,door,table,mountain,plant,"
    "curtain,chair,car,water,painting,sofa,shelf,house,sea,mirror,rug,field,armchair,seat,fence,desk,rock,wardrobe,lamp,"
    "bathtub,railing,cushion,base,box,column,signboard,chest of drawers,counter,sand,sink,skyscraper,fireplace,refrigerator,"
    "grandstand,path,stairs,runway,case,pool table,pillow,screen door,stairway,river,bridge,bookcase,blind,coffee table,"
    "toilet,flower,book,hill,bench,countertop,stove,palm,kitchen island,computer,swivel chair,boat,bar,arcade machine,hovel,"
    "bus,towel,light,truck,tower,chandelier,awning,streetlight,booth,television receiver,airplane,dirt track,apparel,pole,"
    "land,bannister,escalator,ottoman,bottle,buffet,poster,stage,van,ship,fountain,conveyer belt,canopy,washer,plaything,"
    "swimming pool,stool,barrel,basket,waterfall,tent,bag,minibike,cradle,oven,ball,food,step,tank,trade name,microwave,pot,"
    "animal,bicycle,lake,dishwasher,screen,blanket,sculpture,hood,sconce,vase,traffic light,tray,ashcan,fan,pier,crt screen,"
    "plate,monitor,bulletin board,shower,radiator,glass,clock,flag"
).split(",")

_VOC_NAMES = (
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,dining table,dog,horse,motorbike,person,"
    "potted plant,sheep,sofa,train,tv monitor"
).split(",")

_CITYSCAPES_IDS = {  # labelId of the benchmark's 19 classes; the other IDs of 0..33 are void
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip

_CAMVID = {
    "sky": (128, 128, 128), "building": (128, 0, 0), "pole": (192, 192, 128), "road": (128, 64, 128),
    "pavement": (60, 40, 222), "tree": (128, 128, 0), "sign symbol": (192, 128, 128), "fence": (64, 64, 128),
    "car": (64, 0, 128), "pedestrian": (64, 64, 0), "bicyclist": (0, 128, 192),
}  # fmt: skip


def _classes(names: list[str], raw: list[int], colors: list[Color]) -> tuple[Class, ...]:
    return tuple(Class(name, (value,), color) for name, value, color in zip(names, raw, colors))


_others = (*(v for v in range(34) if v not in _CITYSCAPES_IDS.values()), 255)
_PETS = ((204, 121, 167), (86, 180, 233), (240, 228, 66))

CONTRACTS: dict[str, Labels] = {
    "ade20k": Labels(_classes(_ADE20K_NAMES, list(range(1, 151)), PALETTES["ade20k"]), void=(0,)),
    "camvid": Labels(_classes(list(_CAMVID), list(range(11)), list(_CAMVID.values())), void=(11,)),
    "cityscapes": Labels(
        _classes(list(_CITYSCAPES_IDS), list(_CITYSCAPES_IDS.values()), PALETTES["cityscapes"]), void=_others
    ),
    "pets": Labels(_classes(["pet", "background", "border"], [1, 2, 3], list(_PETS)), void=()),
    "pets-binary": Labels(_classes(["pet", "background"], [1, 2], list(_PETS)), void=(3,)),
    "voc": Labels(_classes(_VOC_NAMES, list(range(21)), PALETTES["voc"]), void=(255,)),
}
