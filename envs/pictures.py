"""What worlds look like: boards of squares, and bodies that move."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Colour = tuple[int, int, int]
Point = tuple[float, float]

CELL = 12
"""Pixels of a square, with a line to the next."""
WHITE = (255, 255, 255)
HIDDEN, OPEN, DARK = (190, 190, 190), (235, 235, 235), (70, 70, 70)
BLUE, ORANGE, RED = (31, 111, 139), (255, 159, 28), (190, 40, 40)
SIGNS = {
    "0": "75557",
    "1": "26227",
    "2": "71747",
    "3": "71717",
    "4": "55711",
    "5": "74717",
    "6": "74757",
    "7": "71111",
    "8": "75757",
    "9": "75717",
    "10": "72222",
    "ace": "75755",
    "jack": "11157",
    "queen": "75571",
    "king": "55655",
}
"""Signs of three columns and five rows: of each row a digit, whose three bits are the columns. Ten is a T."""


def board(rows: Sequence[Sequence[tuple[Colour, str]]]) -> Tensor:
    """Squares, each in a colour and with one of the :data:`SIGNS` or none, as bytes ``[rows, columns, 3]``."""
    picture = torch.full((len(rows) * CELL, len(rows[0]) * CELL, 3), 255, dtype=torch.uint8, device="cpu")
    for top, row in enumerate(rows):
        for left, (colour, sign) in enumerate(row):
            square = picture[top * CELL : (top + 1) * CELL - 1, left * CELL : (left + 1) * CELL - 1]
            square[:] = torch.tensor(colour, dtype=torch.uint8, device="cpu")
            for down, bits in enumerate(SIGNS.get(sign, "")):
                for across in range(3):
                    if int(bits) >> (2 - across) & 1:
                        square[3 + down, 4 + across] = 0
    return picture


def draw_line(picture: Tensor, start: Point, end: Point, thickness: float, colour: Colour) -> None:
    """Draw a line with round ends into bytes ``[rows, columns, 3]``; points are pixels from the left and the top."""
    rows, columns, _ = picture.shape
    y, x = torch.meshgrid(
        torch.arange(rows, device="cpu") + 0.5, torch.arange(columns, device="cpu") + 0.5, indexing="ij"
    )
    (x0, y0), (x1, y1) = start, end
    along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-9)
    along = along.clamp(0, 1)
    away = torch.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))
    picture[away <= thickness / 2] = torch.tensor(colour, dtype=torch.uint8, device="cpu")
