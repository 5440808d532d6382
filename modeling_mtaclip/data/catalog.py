# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Facts about known data sets: class names, label ids and colours."""

import math

import numpy as np


# SceneParse150, the ADE20K benchmark: the first name of each class in its objectInfo150.csv, in order. The file
# separates the words of a name as it separates names ("pool;table;billiard;table"); here they are put together again.
ADE20K_CLASSES = (
    "wall",
    "building",
    "sky",
    "floor",
    "tree",
    "ceiling",
    "road",
    "bed",
    "windowpane",
    "grass",
    "cabinet",
    "sidewalk",
    "person",
    "earth",
    "door",
    "table",
    "mountain",
    "plant",
    "curtain",
    "chair",
    "car",
    "water",
    "painting",
    "sofa",
    "shelf",
    "house",
    "sea",
    "mirror",
    "rug",
    "field",
    "armchair",
    "seat",
    "fence",
    "desk",
    "rock",
    "wardrobe",
    "lamp",
    "bathtub",
    "railing",
    "cushion",
    "base",
    "box",
    "column",
    "signboard",
    "chest of drawers",
    "counter",
    "sand",
    "sink",
    "skyscraper",
    "fireplace",
    "refrigerator",
    "grandstand",
    "path",
    "stairs",
    "runway",
    "case",
    "pool table",
    "pillow",
    "screen door",
    "stairway",
    "river",
    "bridge",
    "bookcase",
    "blind",
    "coffee table",
    "toilet",
    "flower",
    "book",
    "hill",
    "bench",
    "countertop",
    "stove",
    "palm",
    "kitchen island",
    "computer",
    "swivel chair",
    "boat",
    "bar",
    "arcade machine",
    "hovel",
    "bus",
    "towel",
    "light",
    "truck",
    "tower",
    "chandelier",
    "awning",
    "streetlight",
    "booth",
    "television",
    "airplane",
    "dirt track",
    "apparel",
    "pole",
    "land",
    "bannister",
    "escalator",
    "ottoman",
    "bottle",
    "buffet",
    "poster",
    "stage",
    "van",
    "ship",
    "fountain",
    "conveyer belt",
    "canopy",
    "washer",
    "plaything",
    "swimming pool",
    "stool",
    "barrel",
    "basket",
    "waterfall",
    "tent",
    "bag",
    "minibike",
    "cradle",
    "oven",
    "ball",
    "food",
    "step",
    "tank",
    "trade name",
    "microwave",
    "pot",
    "animal",
    "bicycle",
    "lake",
    "dishwasher",
    "screen",
    "blanket",
    "sculpture",
    "hood",
    "sconce",
    "vase",
    "traffic light",
    "tray",
    "ashcan",
    "fan",
    "pier",
    "crt screen",
    "plate",
    "monitor",
    "bulletin board",
    "shower",
    "radiator",
    "glass",
    "clock",
    "flag",
)

# Label id -> train id of Cityscapes' 19 evaluated classes, their names and colours (cityscapesscripts, labels.py).
CITYSCAPES_TRAIN_IDS = {
    7: 0,
    8: 1,
    11: 2,
    12: 3,
    13: 4,
    17: 5,
    19: 6,
    20: 7,
    21: 8,
    22: 9,
    23: 10,
    24: 11,
    25: 12,
    26: 13,
    27: 14,
    28: 15,
    31: 16,
    32: 17,
    33: 18,
}
CITYSCAPES_CLASSES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
CITYSCAPES_PALETTE = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
)

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart (https://jfly.uni-koeln.de/color).
OKABE_ITO = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (0, 0, 0),
)
WHITE = (255, 255, 255)
# Oklab's lightness above which colours don't look black in a picture.
MIN_LIGHTNESS = 0.35
# Linear RGB as seen without long-wave and without medium-wave cones, after Viénot, Brettel and Mollon (1999).
COLOUR_VISION = np.array(
    (
        np.eye(3),
        ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
        ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
    )
)
# Oklab, a colour space in which distances are about as large as they look (https://bottosson.github.io/posts/oklab).
LINEAR_TO_LMS = np.array(
    (
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    )
)
LMS_TO_OKLAB = np.array(
    (
        (0.2104542553, 0.7936177850, -0.0040720468),
        (1.9779984951, -2.4285922050, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.8086757660),
    )
)


def generate_palette(num_colours: int) -> list[tuple[int, int, int]]:
    """Colours that differ as much as possible, to colour-blind readers too.

    The first eight are Okabe and Ito's. Each further one is the colour of a grid whose distance to all before it, and
    to the white of pixels without a class, is greatest, where distance is the smallest of those seen with normal
    vision, without red, and without green cones.

    Args:
        num_colours (`int`): how many.

    Returns:
        `list[tuple[int, int, int]]`: red, green, blue in 0 … 255.
    """
    steps = max(10, math.ceil((2 * num_colours) ** (1 / 3)))
    levels = np.linspace(0, 255, steps).round().astype(int)
    candidates = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    seen = _as_seen(candidates)
    bright = seen[0, :, 0] > MIN_LIGHTNESS
    candidates, seen = candidates[bright], seen[:, bright]
    seen_first = _as_seen(np.array((*OKABE_ITO, WHITE)))
    distances = np.min([_distances(seen, other) for other in seen_first.swapaxes(0, 1)], axis=0)
    colours = list(OKABE_ITO[:num_colours])
    while len(colours) < num_colours:
        farthest = int(distances.argmax())
        colours.append(tuple(candidates[farthest].tolist()))
        distances = np.minimum(distances, _distances(seen, seen[:, farthest]))
    return colours


def _as_seen(colours: np.ndarray) -> np.ndarray:
    """Oklab coordinates `(3, N, 3)` of colours `(N, 3)` for the three kinds of vision."""
    share = colours / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    lms = np.einsum("vij,nj->vni", COLOUR_VISION, linear).clip(0, 1) @ LINEAR_TO_LMS.T
    return np.cbrt(lms) @ LMS_TO_OKLAB.T


def _distances(colours: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Smallest distance `(N,)` of colours `(3, N, 3)` to one `(3, 3)` over the kinds of vision."""
    return np.linalg.norm(colours - colour[:, None], axis=-1).min(axis=0)


__all__ = [
    "ADE20K_CLASSES",
    "CITYSCAPES_CLASSES",
    "CITYSCAPES_PALETTE",
    "CITYSCAPES_TRAIN_IDS",
    "generate_palette",
]
