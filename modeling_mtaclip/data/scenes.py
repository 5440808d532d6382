# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Procedurally drawn street scenes with label maps: a data set that needs no download.

Scenes are drawn from back to front: sky, buildings, trees, ground, and cars, people and signs on it, so that nearer
things hide farther ones. Colors overlap between classes (gray buildings and roads, green cars and trees) and the
light changes, so that a model has to look at texture, shape and place too.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .catalog import DATASETS, IGNORE_INDEX


SCENE_CLASSES = DATASETS["scenes"].class_names
ROAD, SIDEWALK, BUILDING, SKY, TREE, CAR, PERSON, SIGN = range(len(SCENE_CLASSES))
SIGN_COLORS = np.array(((215, 30, 30), (30, 70, 200), (235, 200, 20)))


@dataclass
class _Canvas:
    """An image `(height, width, 3)` float32 in [0, 255] and its label map, painted together from back to front."""

    height: int
    width: int
    random: np.random.Generator

    def __post_init__(self) -> None:
        self.image = np.zeros((self.height, self.width, 3), np.float32)
        self.labels = np.full((self.height, self.width), SKY, np.uint8)
        self.horizon = int(self.height * self.random.uniform(0.38, 0.52))

    def draw(
        self, label: int, shapes: list[tuple[Any, ...]], color: np.ndarray, texture: np.ndarray | float = 0.0
    ) -> None:
        """Gives the pixels of shapes (a method of `ImageDraw` and its arguments) a label and a textured color."""
        mask = Image.new("1", (self.width, self.height))
        for kind, *arguments in shapes:
            getattr(ImageDraw.Draw(mask), kind)(*arguments, fill=1)
        inside = np.asarray(mask, dtype=bool)
        shade = np.broadcast_to(np.asarray(texture, dtype=np.float32), inside.shape)
        self.image[inside] = color + shade[inside][:, None]
        self.labels[inside] = label

    def color(self, low: int, high: int, spread: int = 40) -> np.ndarray:
        """A random color around a random gray in `[low, high]`."""
        return self.random.uniform(low, high) + self.random.uniform(-spread, spread, 3)

    def noise(self, scale: int, strength: float) -> np.ndarray:
        """Smooth noise `(height, width)` with blobs of about `scale` pixels."""
        size = self.height // scale + 2, self.width // scale + 2
        coarse = Image.fromarray(self.random.normal(0, strength, size).astype(np.float32))
        return np.asarray(coarse.resize((self.width, self.height), Image.BICUBIC))

    def draw_sky(self) -> None:
        top, bottom = self.random.uniform((60, 110, 170), (130, 170, 235)), self.random.uniform(180, 240, 3)
        share = np.linspace(0, 1, self.height, dtype=np.float32)[:, None, None] ** 0.7
        clouds = np.clip(self.noise(24, 35), 0, None)[..., None]
        self.image[:] = top * (1 - share) + bottom * share + clouds

    def draw_buildings(self) -> None:
        left = -self.random.integers(0, 20)
        while left < self.width:
            right = left + self.random.integers(22, 50)
            if self.random.random() < 0.75:
                top = int(self.horizon * self.random.uniform(0.05, 0.75))
                color, texture = self.color(70, 190, 30), self.noise(3, 5) + self._windows()
                self.draw(BUILDING, [("rectangle", (left, top, right, self.horizon + 8))], color, texture)
            left = right + self.random.integers(0, 12)

    def _windows(self) -> np.ndarray:
        """A grid of darker or brighter rectangles."""
        step_y, step_x = self.random.integers(7, 12), self.random.integers(6, 11)
        y, x = np.arange(self.height)[:, None] % step_y, np.arange(self.width)[None] % step_x
        return ((y > 2) & (x > 2)) * self.random.choice([-1, 1]) * self.random.uniform(25, 60)

    def draw_trees(self) -> None:
        for _ in range(self.random.integers(1, 5)):
            x, radius = self.random.uniform(0, self.width), self.random.uniform(9, 22)
            y = self.horizon - radius * self.random.uniform(0.4, 1.0)
            shapes = [("rectangle", _around(x, 2, y, self.horizon + 6))]
            for _ in range(9):
                dx, dy = self.random.normal(0, radius * 0.45, 2)
                r = radius * self.random.uniform(0.35, 0.65)
                shapes.append(("ellipse", _around(x + dx, r, y + dy - r, y + dy + r)))
            self.draw(TREE, shapes, self.random.uniform((25, 60, 15), (85, 125, 60)), self.noise(2, 26))

    def draw_ground(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Draws sidewalk and road; returns where the road's left and right edges are, at the horizon and below."""
        random, height, width, horizon = self.random, self.height, self.width, self.horizon
        y, x = np.arange(height)[:, None], np.arange(width)[None]
        tiles = (((x + 3 * (y // 6)) % random.integers(7, 11) == 0) | (y % 6 == 0)) * -28.0
        color, texture = self.color(120, 190, 15), tiles + self.noise(4, 6)
        self.draw(SIDEWALK, [("rectangle", (0, horizon, width, height))], color, texture)
        middle = width * random.uniform(0.35, 0.65)
        near, far = width * random.uniform(0.3, 0.42), width * random.uniform(0.03, 0.09)
        shift = width * random.uniform(-0.15, 0.15)
        left, right = (middle - far, middle + shift - near), (middle + far, middle + shift + near)
        corners = [(left[0], horizon), (right[0], horizon), (right[1], height), (left[1], height)]
        self.draw(ROAD, [("polygon", corners)], self.color(60, 120, 8), self.noise(2, 7))
        dashes = []
        for share in np.arange(random.uniform(0.1, 0.25), 1, 0.22):
            x, y = middle + shift * share, horizon + (height - horizon) * share
            dashes.append(("polygon", [(x - 2 * share, y), (x + 2 * share, y), (x, y + 9 * share)]))
        self.draw(ROAD, dashes, self.color(190, 230, 10))
        return left, right

    def draw_car(self, ground: float, size: float, left: float, right: float) -> None:
        x, half, tall = self.random.uniform(left, right), 15 * size, 11 * size
        roof = [(x + side * half, ground - up * tall) for side, up in ((-0.7, 1), (-0.4, 1.7), (0.4, 1.7), (0.7, 1))]
        body = [("rounded_rectangle", _around(x, half, ground - tall, ground - 2 * size), 3 * size), ("polygon", roof)]
        window = [("rectangle", _around(x, 0.4 * half, ground - 1.55 * tall, ground - 1.05 * tall))]
        places = [_around(x + side * half, 3.2 * size, ground - 5 * size, ground + 1.4 * size) for side in (-0.6, 0.6)]
        self.draw(CAR, body, self.color(40, 210, 70), self.noise(12, 9))
        self.draw(CAR, window, self.color(25, 70, 10))
        self.draw(CAR, [("ellipse", place) for place in places], np.full(3, 20.0))

    def draw_person(self, ground: float, size: float, left: float, right: float) -> None:
        random = self.random
        beside = [span for span in ((0, left - 4), (right + 4, self.width)) if span[1] - span[0] > 6]
        x = random.uniform(*beside[random.integers(len(beside))]) if beside else random.uniform(0, self.width)
        tall, half = 27 * size, 4.6 * size
        clothes = (0.22, 0.62, 1.0, self.color(40, 220, 90)), (0.58, 1.0, 0.75, self.color(25, 120, 40))
        for top, bottom, narrow, color in clothes:
            box = _around(x, half * narrow, ground - tall * (1 - top), ground - tall * (1 - bottom))
            self.draw(PERSON, [("rounded_rectangle", box, 1.5 * size)], color, self.noise(3, 6))
        head = [("ellipse", _around(x, 3.4 * size, ground - tall, ground - tall * 0.76))]
        self.draw(PERSON, head, random.uniform((110, 70, 50), (235, 190, 165)))

    def draw_sign(self, ground: float, size: float, left: float, right: float) -> None:
        x = (left - 7 * size) if self.random.random() < 0.5 else (right + 7 * size)
        radius, middle = 6.5 * size, ground - 34 * size
        self.draw(SIGN, [("rectangle", _around(x, 1.4 * size, middle, ground))], self.color(120, 170, 5))
        color = SIGN_COLORS[self.random.integers(3)] + self.random.uniform(-20, 20, 3)
        self.draw(SIGN, [("ellipse", _around(x, radius, middle - radius, middle + radius))], color)
        bar = _around(x, 0.6 * radius, middle - 0.2 * radius, middle + 0.2 * radius)
        self.draw(SIGN, [("rectangle", bar)], np.full(3, 235.0))

    def photograph(self) -> tuple[Image.Image, Image.Image]:
        """Light, noise, and 255 on half of the pixels at borders between labels."""
        random, labels = self.random, self.labels
        light = random.uniform(0.65, 1.2) * random.uniform(0.92, 1.08, 3) * (1 + self.noise(40, 0.08)[..., None])
        image = self.image * light + random.normal(0, random.uniform(3, 9), self.image.shape)
        border = np.zeros(labels.shape, dtype=bool)
        border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
        border[1:] |= labels[1:] != labels[:-1]
        labels = np.where(border & (random.random(labels.shape) < 0.5), IGNORE_INDEX, labels).astype(np.uint8)
        return Image.fromarray(image.clip(0, 255).astype(np.uint8)), Image.fromarray(labels)


def make_scene(seed: int, height: int = 128, width: int = 160) -> tuple[Image.Image, Image.Image]:
    """Draws the scene of a seed, `height` x `width` pixels large.

    Returns:
        `tuple[Image.Image, Image.Image]`: an RGB image, and a label map of mode "L" with the indices of
        [`SCENE_CLASSES`], and 255 along some of the borders between things.
    """
    random = np.random.default_rng(seed)
    canvas = _Canvas(height, width, random)
    canvas.draw_sky()
    canvas.draw_buildings()
    canvas.draw_trees()
    road = canvas.draw_ground()
    things = [canvas.draw_car] * random.integers(1, 4) + [canvas.draw_person] * random.integers(1, 4)
    things += [canvas.draw_sign] * random.integers(1, 3)
    order = random.permutation(things)
    # Farther things first, so that nearer ones hide them.
    for draw_thing, share in zip(order, np.sort(random.uniform(0.12, 0.9, len(things))), strict=True):
        left, right = (far + (near - far) * share for far, near in road)
        draw_thing(canvas.horizon + (height - canvas.horizon) * share, 0.55 + 0.75 * share, left, right)
    return canvas.photograph()


def _around(x: float, half_width: float, top: float, bottom: float) -> tuple[float, float, float, float]:
    return x - half_width, top, x + half_width, bottom


__all__ = ["SCENE_CLASSES", "make_scene"]
