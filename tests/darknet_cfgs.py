"""Cfg files for tests: those of the authors' releases, of any width, and two small ones with every kind of section."""

NET = """[net]
# Testing
batch=1
subdivisions=1
width={width}
height={height}
channels=3
momentum=0.9
decay=0.0005
angle=0
saturation = 1.5
exposure = 1.5
hue=.1

learning_rate=0.001
burn_in=1000
max_batches = 500200
policy=steps
steps=400000,450000
scales=.1,.1
"""
MAX, MAX_SAME, UPSAMPLE = "[maxpool]\nsize=2\nstride=2\n", "[maxpool]\nsize=2\nstride=1\n", "[upsample]\nstride=2\n"
SHORTCUT = "[shortcut]\nfrom=-3\nactivation=linear\n"
V2_SHAPES = "1.3221,1.73145, 3.19275,4.00944, 5.05587,8.09892, 9.47112,4.84053, 11.2364,10.0071"
V2_TINY_SHAPES = "1.08,1.19,  3.42,4.41,  6.63,11.38,  9.42,5.11,  16.62,10.52"
V3_SHAPES = "10,13,  16,30,  33,23,  30,61,  62,45,  59,119,  116,90,  156,198,  373,326"
V3_TINY_SHAPES = "10,14,  23,27,  37,58,  81,82,  135,169,  344,319"


def net(width: int, height: int) -> str:
    return NET.format(width=width, height=height)


def conv(filters: int, size: int = 3, stride: int = 1) -> str:
    shape = f"filters={filters}\nsize={size}\nstride={stride}\npad=1\n"
    return f"[convolutional]\nbatch_normalize=1\n{shape}activation=leaky\n\n"


def linear(filters: int) -> str:
    return f"[convolutional]\nsize=1\nstride=1\npad=1\nfilters={filters}\nactivation=linear\n\n"


def route(*layers: int) -> str:
    return f"[route]\nlayers = {', '.join(map(str, layers))}\n\n"


def yolo(mask: str, anchors: str, classes: int) -> str:
    shapes = f"mask = {mask}\nanchors = {anchors}\nclasses={classes}\nnum={len(anchors.split(',')) // 2}\n"
    rules = "jitter=.3\nignore_thresh = .7\ntruth_thresh = 1\nrandom=1\n\n"
    return linear(len(mask.split(",")) * (5 + classes)) + "[yolo]\n" + shapes + rules


def region(anchors: str, classes: int) -> str:
    count = len(anchors.split(",")) // 2
    shapes = f"anchors = {anchors}\nbias_match=1\nclasses={classes}\ncoords=4\nnum={count}\nsoftmax=1\njitter=.3\n"
    scales = "rescore=1\n\nobject_scale=5\nnoobject_scale=1\nclass_scale=1\ncoord_scale=1\n\n"
    return linear(count * (5 + classes)) + f"[region]\n{shapes}{scales}absolute=1\nthresh = .6\nrandom=1\n"


def published_v2(classes: int, *, width: int, side: int = 416) -> str:
    """yolov2-voc, whose first convolution has 32 channels."""
    groups = [conv(width), conv(2 * width)]
    for i, count in ((2, 3), (3, 3), (4, 5), (5, 5)):
        wide = width * 2**i
        groups.append("".join(conv(wide // 2, 1) if place % 2 else conv(wide) for place in range(count)))
    passed = [route(-9), conv(2 * width, 1), "[reorg]\nstride=2\n\n", route(-1, -4)]
    last = conv(32 * width)
    return net(side, side) + MAX.join(groups) + last * 2 + "".join(passed) + last + region(V2_SHAPES, classes)


def published_v2_tiny(classes: int, *, width: int, side: int = 416) -> str:
    """yolov2-tiny-voc, whose first convolution has 16 channels."""
    chain = MAX.join(conv(width * 2**i) for i in range(6)) + MAX_SAME + conv(64 * width) * 2
    return net(side, side) + chain + region(V2_TINY_SHAPES, classes)


def published_v3_tiny(classes: int, *, width: int, side: int = 416) -> str:
    """yolov3-tiny, whose first convolution has 16 channels."""
    chain = MAX.join(conv(width * 2**i) for i in range(6)) + MAX_SAME + conv(64 * width)
    coarse = conv(16 * width, 1) + conv(32 * width) + yolo("3,4,5", V3_TINY_SHAPES, classes)
    fine = route(-4) + conv(8 * width, 1) + UPSAMPLE + route(-1, 8) + conv(16 * width)
    return net(side, side) + chain + coarse + fine + yolo("0,1,2", V3_TINY_SHAPES, classes)


def published_v3(classes: int, *, width: int, side: int = 416) -> str:
    """yolov3, whose first convolution has 32 channels."""
    cfg = net(side, side) + conv(width)
    for i, blocks in enumerate((1, 2, 8, 8, 4)):
        wide = width * 2**i
        cfg += conv(2 * wide, stride=2) + (conv(wide, 1) + conv(2 * wide) + SHORTCUT) * blocks
    for i, (mask, finer) in enumerate((("6,7,8", 61), ("3,4,5", 36), ("0,1,2", None))):
        wide = 32 * width // 2**i
        cfg += (conv(wide // 2, 1) + conv(wide)) * 3 + yolo(mask, V3_SHAPES, classes)
        cfg += "" if finer is None else route(-4) + conv(wide // 4, 1) + UPSAMPLE + route(-1, finer)
    return cfg


PYRAMID = (
    net(64, 32)
    + conv(4, stride=2)
    + conv(2, 1)
    + conv(4)
    + SHORTCUT
    + MAX
    + MAX_SAME
    + "[convolutional]\nfilters=3\nsize=2\nstride=2\nactivation=relu\n\n"
    + "[maxpool]\nsize=3\nstride=1\n\n"
    + route(-1, -2)
    + yolo("1,2", "4,6, 10,14,  20,12", 2)
    + route(-3)
    + UPSAMPLE
    + route(-1, 5)
    + yolo("0", "4,6, 10,14,  20,12", 2)
)
"""Two levels, of 8 x 16 and 4 x 8 cells."""

PASSED = (
    net(48, 32)
    + conv(4, stride=4)
    + "[convolutional]\nbatch_normalize=1\nfilters=3\nsize=3\nstride=2\npadding=1\nactivation=logistic\n\n"
    + route(-2)
    + "[reorg]\nstride=2\n\n"
    + route(-1, -3)
    + region("1.5,1, .7,.6", 3)
)
"""One level of 4 x 6 cells, with pixels passed through."""
