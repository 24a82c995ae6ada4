"""Pictures of points in the plane, for the environments' ``rgb_array``."""

import numpy as np

WHITE, GREY, BLUE, RED, GREEN = (255, 255, 255), (170, 170, 170), (50, 90, 200), (210, 60, 50), (60, 160, 80)

Discs = list[tuple[np.ndarray, float, tuple[int, int, int]]]


def draw_discs(discs: Discs, center: np.ndarray, half_width: float, size: int = 256) -> np.ndarray:
    """
    :param discs: position in the plane, radius and colour of each disc; the last are on top
    :param center: point in the middle of the picture, (2,)
    :param half_width: distance of the picture's edge from its middle
    :param size: pixels along an edge
    :return: picture, (size, size, 3), uint8, with the second coordinate upwards
    """
    image = np.full((size, size, 3), WHITE, dtype=np.uint8)
    offsets = (np.arange(size) + 0.5) / size * 2 * half_width - half_width
    x, y = center[0] + offsets[None, :], center[1] - offsets[:, None]
    for position, radius, color in discs:
        image[(x - position[0]) ** 2 + (y - position[1]) ** 2 <= radius**2] = color
    return image
