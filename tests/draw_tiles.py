"""Draw tiles that look a little like EuroSAT's, for tests and for the demonstration.

python tests/draw_tiles.py FOLDER [PER_CLASS]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

# Red, green, blue: chosen so that the mean of each class is near EuroSAT's.
SOIL, CROP, STUBBLE = (190, 146, 134), (52, 88, 82), (138, 120, 116)
WOOD, SCRUB, GRASS, ORCHARD = (39, 64, 76), (97, 98, 103), (61, 91, 94), (140, 130, 126)
ROOF, TILES, TOWN, DARK = (214, 210, 214), (200, 164, 156), (96, 104, 114), (44, 66, 78)
ROAD, WATER = (150, 146, 148), (48, 73, 89)


def spots(random, size, grain):
    """Return smooth random spots of about `grain` pixels, with mean 0 and deviation 1."""
    coarse = random.normal(size=(size // grain + 3,) * 2).astype(np.float32)
    field = np.asarray(Image.fromarray(coarse).resize((size + 3 * grain,) * 2, Image.BICUBIC))
    field = field[grain : grain + size, grain : grain + size]
    return (field - field.mean()) / field.std()


def axes(random, size):
    """Return the distances of each pixel from two lines through the middle, at right angles."""
    angle, (y, x) = random.uniform(0, np.pi), np.mgrid[:size, :size] - size / 2
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def parcels(random, size, width, height):
    """Return the number of each pixel's parcel, of `width` x `height` pixels, and the borders."""
    across, along = axes(random, size)
    column, in_column = np.divmod(across + random.uniform(0, width), width)
    shift = random.uniform(0, height, 999)[column.astype(int)]
    row, in_row = np.divmod(along + shift, height)
    border = (in_column < 1) | (in_row < 1)
    return (column.astype(int) * 31 + row.astype(int)) % 997, border


def paint(numbers, random, colours, spread):
    """Return an image in which each number has one of the colours, a little changed."""
    tones = np.array(colours, float)[random.integers(len(colours), size=997)]
    return (tones + random.normal(0, spread, (997, 1)) + random.normal(0, spread / 4, (997, 3)))[
        numbers
    ]


def annual_crop(random, size):
    numbers, border = parcels(random, size, random.uniform(26, 50), random.uniform(30, 70))
    image = paint(numbers, random, [SOIL, SOIL, CROP, STUBBLE], 14)
    image[border] = STUBBLE
    return image + 3 * spots(random, size, 8)[..., None]


def forest(random, size):
    crowns = 2.5 * spots(random, size, 2) + 2 * spots(random, size, 5) + 2 * spots(random, size, 20)
    return np.array(WOOD) + crowns[..., None] * (0.9, 1.1, 0.9)


def herbaceous_vegetation(random, size):
    rough = 12 * spots(random, size, 20) + 7 * spots(random, size, 6) + 7 * spots(random, size, 2)
    bare = np.maximum(spots(random, size, 10) - 1, 0)[..., None] * (40, 22, 12)
    return np.array(SCRUB) - (4, 2, 1) + rough[..., None] * (1.3, 1, 0.8) + bare


def highway(random, size):
    image = 0.6 * annual_crop(random, size) + (5, 20, 30)
    return band(random, image, ROAD, 2.2, 0)


def industrial(random, size):
    numbers, border = parcels(random, size, random.uniform(8, 14), random.uniform(10, 18))
    image = paint(numbers, random, [ROOF, ROOF, ROOF, TOWN, TOWN, STUBBLE, DARK], 18)
    image[border] = TOWN
    return image + 8 * spots(random, size, 2)[..., None]


def pasture(random, size):
    numbers, border = parcels(random, size, random.uniform(24, 40), random.uniform(24, 40))
    image = paint(numbers, random, [GRASS], 6)
    image[border] = WOOD
    return image + 2 * spots(random, size, 10)[..., None]


def permanent_crop(random, size):
    numbers, border = parcels(random, size, random.uniform(12, 18), random.uniform(24, 40))
    image = paint(numbers, random, [ORCHARD, ORCHARD, STUBBLE, CROP], 16)
    image[border] = SOIL
    across, along = axes(random, size)
    trees = np.sin(across * 2 * np.pi / 5) * np.sin(along * 2 * np.pi / 5)
    return image - 40 * np.abs(trees)[..., None] + 18 + 6 * spots(random, size, 2)[..., None]


def residential(random, size):
    numbers, border = parcels(random, size, 3.2, 4)
    image = paint(numbers, random, [TILES, TILES, TOWN, TOWN, DARK, GRASS], 14)
    _, street = parcels(random, size, random.uniform(10, 14), random.uniform(16, 26))
    image[border], image[street] = np.array(DARK) + 20, np.array(TOWN) + 10
    return image + 5 * spots(random, size, 2)[..., None]


def river(random, size):
    image = 0.6 * pasture(random, size) + 0.3 * annual_crop(random, size) + (0, 5, 15)
    return band(random, image, WATER, random.uniform(5, 9), 0.15)


def sea_lake(random, size):
    shade = random.normal(0, 14) + spots(random, size, 16)
    return np.array(WATER) + shade[..., None]


def band(random, image, colour, half_width, winding):
    """Draw a road or a river across an image; `winding` is a share of its size."""
    size = len(image)
    across, along = axes(random, size)
    bends = np.sin(along / size * random.uniform(2, 5) + random.uniform(0, 6))
    across = across + size * (winding * bends + random.uniform(-0.15, 0.15))
    image[np.abs(across) < half_width] = colour
    return image


DRAW = {
    "AnnualCrop": annual_crop,
    "Forest": forest,
    "HerbaceousVegetation": herbaceous_vegetation,
    "Highway": highway,
    "Industrial": industrial,
    "Pasture": pasture,
    "PermanentCrop": permanent_crop,
    "Residential": residential,
    "River": river,
    "SeaLake": sea_lake,
}


def develop(random, image):
    """Return an image as `uint8`, a little blurred as by a lens, with noise."""
    blurred = (image + np.roll(image, 1, 0) + np.roll(image, 1, 1) + np.roll(image, 1, (0, 1))) / 4
    return (blurred + random.normal(0, 1.5, image.shape)).round().clip(1, 255).astype(np.uint8)


def draw_tiles(folder, per_class=10, seed=0):
    """Write `folder`/Class/Class_n.jpg, `per_class` of each of the ten classes; return `folder`."""
    random = np.random.default_rng(seed)
    for label, draw in DRAW.items():
        Path(folder, label).mkdir(parents=True)
        for number in range(1, per_class + 1):
            tile = develop(random, draw(random, 64) + random.normal(0, 6))
            Image.fromarray(tile).save(Path(folder, label, f"{label}_{number}.jpg"), quality=90)
    return Path(folder)


def draw_scene(size=640, seed=0):
    """Return a landscape of all ten classes, `uint8` of shape `(size, size, 3)`."""
    random = np.random.default_rng(seed)
    areas = [label for label in DRAW if label not in ("Highway", "River")]
    heights = [spots(random, size, 96) + 0.15 * spots(random, size, 16) for _ in areas]
    which = np.argmax(heights, axis=0)
    image = np.zeros((size, size, 3))
    for index, label in enumerate(areas):
        image[which == index] = DRAW[label](random, size)[which == index]
    image = band(random, image, WATER, 9, 0.1)
    return develop(random, band(random, image, ROAD, 2.2, 0))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    print(f"Drawn, not EuroSAT: {draw_tiles(sys.argv[1], *map(int, sys.argv[2:]))}")
