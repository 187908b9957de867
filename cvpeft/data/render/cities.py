"""What one city looks like: a city is one entry of distributions, and a new city is one more entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["CITIES", "CLASSES", "City", "Rig"]

CLASSES = ("good", "broke", "lose", "uncovered", "circle")

Span = tuple[float, float]  # drawn uniformly between the two
Mix = Mapping[str, float]  # name -> weight


@dataclass(frozen=True)
class Rig:
    """One way in which photographs are taken in a city.

    weight: share among the city's rigs; height: metres; pitch, yaw: degrees, yaw counted from the street's direction
    to either side; focal: in longer sides of the image; bonnet: share of images in which the car's bonnet shows.
    """

    weight: float
    height: Span
    pitch: Span
    yaw: float
    focal: Span
    bonnet: float = 0.0


@dataclass(frozen=True)
class City:
    """Distributions of one city's streets.

    grounds, walks: ground tile -> weight, for the road and for the side walk. counts: shares of images with 0, 1, ...
    covers; labels: shares of CLASSES among the covers that are tried (a loose one finds its place less often).
    ground_tint, cover_tint, cast: factors
    on red, green and blue; ground_gain: brightness. patterns, lids: cover pattern and plain lid -> weight; square:
    share of square covers; diameter: metres, with the frame. frame: width of the frame ring over the cover's radius;
    rust, wear, dirt: 0..1. sun: elevation in degrees; sunny, wet, dusk: shares of images. marks: share of images with
    paint on the road, yellow: share of it that is yellow; leaves: share of images with leaves. noise: deviation in
    grey levels; blur: px at a width of 640; saturation: factor; quality: JPEG.
    """

    name: str
    grounds: Mix
    walks: Mix
    patterns: Mix
    lids: Mix
    rigs: tuple[Rig, ...]
    counts: tuple[float, ...] = (0.13, 0.44, 0.26, 0.12, 0.05)
    labels: tuple[float, ...] = (0.36, 0.15, 0.18, 0.15, 0.16)
    ground_tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ground_gain: Span = (0.85, 1.15)
    cover_tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    square: float = 0.05
    diameter: Span = (0.62, 0.78)
    frame: Span = (0.08, 0.14)
    collar: float = 0.3
    rust: Span = (0.0, 0.5)
    wear: Span = (0.2, 0.9)
    dirt: Span = (0.2, 0.8)
    sun: Span = (25.0, 65.0)
    sunny: float = 0.6
    wet: float = 0.12
    dusk: float = 0.05
    marks: float = 0.5
    yellow: float = 0.1
    leaves: float = 0.25
    noise: Span = (1.0, 5.0)
    blur: Span = (0.3, 1.0)
    saturation: Span = (0.85, 1.1)
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    quality: Span = (76, 92)


CAR_ROOF = Rig(0.25, (1.9, 2.6), (22, 42), 8, (0.75, 1.05))
INSPECTOR = Rig(0.75, (1.4, 1.7), (42, 75), 180, (0.8, 1.2))  # on foot, the phone held down at what is to be reported

A = City(
    name="a",
    grounds={"asphalt_old": 5, "asphalt_new": 2, "asphalt_coarse": 3},
    walks={"slabs": 3, "asphalt_old": 1, "bricks_red": 1},
    patterns={"checker": 4, "waffle": 3, "logo": 2, "tread": 2, "rings": 1},
    lids={"iron": 4, "valve": 3, "concrete": 2},
    rigs=(CAR_ROOF, INSPECTOR),
    sunny=0.65,
    cast=(1.0, 1.0, 1.0),
)

B = City(
    name="b",
    grounds={"bricks_grey": 4, "setts": 4, "slabs": 3, "concrete": 3},
    walks={"slabs": 2, "setts": 2, "concrete": 1},
    patterns={"radial": 4, "ribs": 3, "studs": 3, "rings": 2, "letters": 2},
    lids={"plastic": 3, "concrete": 4, "iron": 2},
    rigs=(
        Rig(0.25, (1.05, 1.4), (20, 34), 10, (0.65, 0.9), bonnet=0.25),
        Rig(0.75, (1.25, 1.55), (38, 72), 180, (0.75, 1.05)),
    ),
    ground_tint=(1.03, 1.0, 0.96),
    cover_tint=(1.08, 0.98, 0.88),
    square=0.08,
    diameter=(0.55, 0.7),
    frame=(0.12, 0.2),
    collar=0.15,
    rust=(0.3, 0.9),
    sun=(10.0, 28.0),
    sunny=0.5,
    wet=0.4,
    dusk=0.12,
    marks=0.15,
    leaves=0.45,
    noise=(2.0, 8.0),
    blur=(0.4, 1.3),
    saturation=(0.9, 1.2),
    cast=(1.04, 1.0, 0.95),
    quality=(72, 88),
)

C = City(
    name="c",
    grounds={"asphalt_new": 5, "asphalt_coarse": 3, "concrete": 1},
    walks={"bricks_grey": 2, "slabs": 2},
    patterns={"letters": 3, "logo": 3, "radial": 2, "waffle": 2, "studs": 1},
    lids={"valve": 4, "iron": 3},
    rigs=(
        Rig(0.8, (1.25, 1.6), (17, 32), 6, (0.8, 1.15), bonnet=0.35),
        Rig(0.2, (1.5, 1.8), (35, 60), 180, (0.8, 1.0)),
    ),
    ground_tint=(0.97, 1.0, 1.03),
    ground_gain=(0.75, 1.05),
    diameter=(0.6, 0.85),
    frame=(0.06, 0.12),
    collar=0.45,
    rust=(0.0, 0.3),
    sun=(15.0, 45.0),
    sunny=0.3,
    wet=0.3,
    dusk=0.4,
    marks=0.75,
    yellow=0.4,
    leaves=0.1,
    noise=(3.0, 11.0),
    blur=(0.5, 1.6),
    saturation=(0.75, 1.0),
    cast=(0.97, 1.0, 1.05),
    quality=(70, 85),
)

D = City(
    name="d",
    grounds={"concrete": 5, "slabs": 2, "asphalt_old": 3},
    walks={"concrete": 3, "bricks_red": 2},
    patterns={"ribs": 3, "tread": 3, "rings": 3, "letters": 2, "checker": 1},
    lids={"concrete": 4, "plastic": 2, "valve": 2},
    rigs=(
        Rig(0.7, (1.35, 1.8), (40, 78), 180, (0.8, 1.25)),
        Rig(0.3, (2.2, 3.0), (28, 45), 8, (0.8, 1.1)),
    ),
    ground_tint=(1.03, 1.01, 0.97),
    ground_gain=(1.0, 1.25),
    cover_tint=(0.95, 0.97, 1.0),
    square=0.1,
    diameter=(0.55, 0.75),
    collar=0.5,
    rust=(0.1, 0.6),
    sun=(50.0, 80.0),
    sunny=0.85,
    wet=0.03,
    dusk=0.0,
    marks=0.4,
    yellow=0.6,
    leaves=0.2,
    noise=(0.5, 3.0),
    blur=(0.2, 0.8),
    saturation=(1.0, 1.25),
    cast=(1.02, 1.01, 0.97),
    quality=(80, 92),
)

YARD = City(  # no town: a proving ground with covers of every make on every pavement, to train a base on
    name="yard",
    grounds=dict.fromkeys(
        ("asphalt_old", "asphalt_new", "asphalt_coarse", "bricks_grey", "bricks_red", "setts", "slabs", "concrete"), 1
    ),
    walks={"slabs": 1, "concrete": 1},
    patterns=dict.fromkeys(("checker", "waffle", "logo", "tread", "rings", "radial", "ribs", "studs", "letters"), 1),
    lids=dict.fromkeys(("iron", "valve", "concrete", "plastic"), 1),
    rigs=(Rig(1.0, (1.8, 2.6), (42, 78), 180, (0.75, 1.05)),),
    counts=(0.02, 0.05, 0.13, 0.2, 0.25, 0.2, 0.15),
    labels=(0.2, 0.2, 0.35, 0.1, 0.15),
    ground_gain=(0.8, 1.2),
    diameter=(0.55, 0.85),
    frame=(0.06, 0.2),
    rust=(0.0, 0.9),
    sun=(10.0, 75.0),
    sunny=0.55,
    wet=0.2,
    dusk=0.15,
    noise=(1.0, 8.0),
    blur=(0.3, 1.3),
    saturation=(0.8, 1.2),
    quality=(72, 92),
)

CITIES: Mapping[str, City] = MappingProxyType({city.name: city for city in (A, B, C, D, YARD)})
