"""Draw a world: which road, houses, trees, lamps, people and vehicles a seed and a condition give."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from duskfuse.data.scenes.bikes import Bike
from duskfuse.data.scenes.buildings import Building, Facade, Wall
from duskfuse.data.scenes.camera import Camera
from duskfuse.data.scenes.climate import Climate, Light, Thing, draw_climate
from duskfuse.data.scenes.furniture import Foliage, Sign, SignKind, StreetLamp, Trunk
from duskfuse.data.scenes.ground import Ground, Paving
from duskfuse.data.scenes.kinds import Condition
from duskfuse.data.scenes.people import Clothes, Person, Pose
from duskfuse.data.scenes.surfaces import Colour
from duskfuse.data.scenes.texture import SPRITE_KINDS
from duskfuse.data.scenes.vehicles import Model, Vehicle

_CAR_COLOURS: tuple[Colour, ...] = (
    (0.55, 0.56, 0.57),
    (0.70, 0.70, 0.69),
    (0.035, 0.036, 0.04),
    (0.16, 0.165, 0.17),
    (0.33, 0.02, 0.02),
    (0.03, 0.07, 0.22),
    (0.06, 0.15, 0.20),
    (0.40, 0.30, 0.16),
    (0.05, 0.14, 0.08),
    (0.52, 0.30, 0.02),
)
_WALL_COLOURS: dict[Wall, tuple[Colour, ...]] = {
    Wall.BRICK: ((0.30, 0.12, 0.075), (0.36, 0.19, 0.11), (0.24, 0.13, 0.10), (0.42, 0.30, 0.19)),
    Wall.PLASTER: ((0.55, 0.50, 0.41), (0.48, 0.37, 0.24), (0.42, 0.44, 0.42), (0.55, 0.42, 0.33), (0.38, 0.45, 0.47)),
    Wall.PANELS: ((0.38, 0.38, 0.37), (0.30, 0.31, 0.34), (0.46, 0.44, 0.40)),
    Wall.GLASS: ((0.13, 0.15, 0.17), (0.20, 0.22, 0.24), (0.10, 0.12, 0.12)),
}
_SKINS: tuple[Colour, ...] = ((0.46, 0.29, 0.21), (0.36, 0.21, 0.14), (0.20, 0.11, 0.07), (0.10, 0.055, 0.035))
_HAIRS: tuple[Colour, ...] = ((0.02, 0.016, 0.013), (0.06, 0.035, 0.02), (0.16, 0.10, 0.05), (0.30, 0.29, 0.28))
_LAMP_COLOURS: tuple[Colour, ...] = ((1.0, 0.62, 0.25), (1.0, 0.86, 0.64), (0.85, 0.94, 1.0))


@dataclass
class World:
    """Everything that is painted, and the camera that looks at it."""

    camera: Camera
    climate: Climate
    ground: Ground
    sky_shift: tuple[float, float]
    houses: list[Building] = field(default_factory=list)
    things: list[Thing] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)
    glare: list[tuple[float, float, float]] = field(default_factory=list)
    """World position of blinding sources; a far point for the sun."""


def compose(rng: np.random.Generator, condition: Condition, size: tuple[int, int]) -> World:
    """Draw a world of a condition for a picture of ``size`` (height, width); the draw does not depend on the size."""
    climate = draw_climate(rng, condition)
    ground = _draw_ground(rng)
    world = World(_draw_camera(rng, size), climate, ground, (float(rng.random()), float(rng.random())))
    for side in (-1, 1):
        _add_side(rng, world, side)
    _add_traffic(rng, world, condition)
    _add_people(rng, world, condition)
    if climate.dark and rng.random() < 0.6:
        world.lights.append(Light((0.0, 0.7, -0.4), (1.7, 1.6, 1.45), (0.0, -0.10, 0.995), 0.90))
    if climate.sun is not None and condition is Condition.GLARE:
        x, y, z = climate.sun
        world.glare.append((1000 * x / z, 1000 * y / z, 1000.0))
    return world


def _draw_camera(rng: np.random.Generator, size: tuple[int, int]) -> Camera:
    rows, columns = size
    side = float(np.sqrt(rows * columns / (480 * 640)))
    return Camera(
        rows=rows,
        columns=columns,
        focal=side * rng.uniform(560, 760),
        centre=columns * rng.uniform(0.40, 0.60),
        horizon=rows * rng.uniform(0.40, 0.50),
        height=rng.uniform(1.35, 2.3),
    )


def _draw_ground(rng: np.random.Generator) -> Ground:
    lanes = int(rng.choice([2, 2, 2, 3, 4]))
    lane = rng.uniform(2.9, 3.5)
    half = lanes * lane / 2 + 0.35
    return Ground(
        centre=float(rng.choice([-1, 1])) * rng.uniform(0.15, 0.75) * half,
        half_width=half,
        sidewalk=rng.uniform(2.2, 4.2),
        verges=(float(rng.choice([0.0, 0.0, 2.5, 6.0])), float(rng.choice([0.0, 0.0, 2.5, 6.0]))),
        lanes=lanes,
        lane_width=lane,
        yellow=bool(rng.random() < 0.35),
        crossing=rng.uniform(9, 22) if rng.random() < 0.4 else None,
        asphalt=rng.uniform(0.075, 0.15),
        paving=Paving(rng.choice([*Paving])),
        wear=rng.uniform(0.1, 0.8),
        shift=(rng.uniform(0, 60), rng.uniform(0, 60)),
    )


def _add_side(rng: np.random.Generator, world: World, side: int) -> None:
    """Houses, trees, lamps and signs of the left (−1) or right (1) side."""
    ground = world.ground
    curb = ground.centre + side * ground.half_width
    verge = ground.verges[(side + 1) // 2]
    back = curb + side * (ground.sidewalk + verge)
    park = rng.random() < 0.22
    if park:
        _add_park(rng, world, side, back)
    else:
        _add_houses(rng, world, side, back)
    _add_street_trees(rng, world, side, curb, verge if not park else 6.0)
    _add_lamps(rng, world, side, curb)
    for _ in range(int(rng.integers(0, 3))):
        kind = SignKind(rng.choice([*SignKind]))
        high = {SignKind.DIRECTION: 3.3, SignKind.SIGNAL: 3.0}.get(kind, 2.3)
        world.things.append(Sign(curb + side * 0.55, rng.uniform(7, 40), high, kind, bool(rng.random() < 0.5)))


def _add_houses(rng: np.random.Generator, world: World, side: int, back: float) -> None:
    z = rng.uniform(-6, 6)
    while z < 130:
        length = rng.uniform(9, 24)
        height = rng.uniform(6, 13) if rng.random() < 0.6 else rng.uniform(13, 30)
        front = back + side * float(rng.choice([0, 0, 0, rng.uniform(0.5, 2.5)]))
        world.houses.append(Building(front, front + side * 14, z, z + length, height, _draw_facade(rng)))
        gap = float(rng.choice([0.0, 0.0, rng.uniform(1.5, 9)]))
        if gap > 4 and z > 0:
            world.things += _tree(rng, front + side * 3, z + length + gap / 2)
        z += length + gap


def _draw_facade(rng: np.random.Generator) -> Facade:
    wall = Wall(rng.choice([*Wall], p=[0.34, 0.34, 0.2, 0.12]))
    colours = _WALL_COLOURS[wall]
    red, green, blue = colours[int(rng.integers(len(colours)))]
    bright = rng.uniform(0.8, 1.15)
    light_trim = rng.random() < 0.6
    trim = rng.uniform(0.45, 0.6) if light_trim else rng.uniform(0.05, 0.16)
    glassy = wall is Wall.GLASS
    return Facade(
        wall=wall,
        colour=(red * bright, green * bright, blue * bright),
        trim=(trim, trim * 0.98, trim * 0.94),
        floor=rng.uniform(2.9, 3.7),
        bay=rng.uniform(1.4, 2.2) if glassy else rng.uniform(2.0, 4.0),
        window=(0.9, 0.86) if glassy else (rng.uniform(0.36, 0.62), rng.uniform(0.42, 0.62)),
        shops=bool(rng.random() < 0.45),
        balconies=bool(not glassy and rng.random() < 0.25),
        lit=rng.uniform(0.08, 0.45),
        warmth=rng.uniform(-0.8, 1.8),
        shift=float(rng.integers(0, 50)),
    )


def _leaves(rng: np.random.Generator) -> Colour:
    if rng.random() < 0.12:
        return (rng.uniform(0.20, 0.30), rng.uniform(0.11, 0.16), 0.025)
    green = rng.uniform(0.11, 0.19)
    return (green * rng.uniform(0.42, 0.75), green, green * rng.uniform(0.12, 0.35))


def _tree(rng: np.random.Generator, x: float, z: float, scale: float = 1.0) -> list[Thing]:
    half_width, half_height = rng.uniform(1.5, 2.9) * scale, rng.uniform(1.7, 2.9) * scale
    base = rng.uniform(2.0, 2.9)
    middle = base + 0.88 * half_height
    crown = Foliage(
        x, middle, z, half_width, half_height, _leaves(rng), int(rng.integers(SPRITE_KINDS)), bool(rng.random() < 0.5)
    )
    trunk = Trunk(
        x, z, middle + 0.2 * half_height, rng.uniform(0.12, 0.22) * scale, rng.uniform(-0.2, 0.2), 0.55 * half_width
    )
    return [trunk, crown]


def _bush(rng: np.random.Generator, x: float, z: float, colour: Colour, size: float) -> Foliage:
    high = size * rng.uniform(0.75, 1.1)
    kind, mirrored = int(rng.integers(SPRITE_KINDS)), bool(rng.random() < 0.5)
    return Foliage(x, 0.72 * high, z, size * rng.uniform(0.95, 1.35), high, colour, kind, mirrored)


def _add_park(rng: np.random.Generator, world: World, side: int, back: float) -> None:
    colour = _leaves(rng)
    for z in np.arange(rng.uniform(4, 6), 34, 1.15):
        world.things.append(_bush(rng, back + side * 0.7, float(z), colour, 0.72))
    for z in np.arange(rng.uniform(6, 10), 95, 5.5):
        x = back + side * rng.uniform(2.5, 11)
        world.things += _tree(rng, x, float(z) + rng.uniform(-2, 2), rng.uniform(1.0, 1.7))


def _add_street_trees(rng: np.random.Generator, world: World, side: int, curb: float, verge: float) -> None:
    chance = rng.random()
    if chance < 0.5:
        x = curb + side * (world.ground.sidewalk + 0.5 * verge if verge else 0.9)
        first, step = rng.uniform(9, 18), rng.uniform(8, 15)
        for z in np.arange(first, 80, step):
            if rng.random() < 0.85:
                world.things += _tree(rng, x, float(z), 0.85 if not verge else 1.0)
    if verge > 2 and rng.random() < 0.6:
        colour = _leaves(rng)
        for z in np.arange(rng.uniform(6, 9), 40, rng.uniform(2.5, 5)):
            world.things.append(
                _bush(
                    rng,
                    curb + side * (world.ground.sidewalk + rng.uniform(0.9, verge)),
                    float(z),
                    colour,
                    rng.uniform(0.5, 0.9),
                )
            )


def _add_lamps(rng: np.random.Generator, world: World, side: int, curb: float) -> None:
    colour = _LAMP_COLOURS[int(rng.integers(len(_LAMP_COLOURS)))]
    height, reach = rng.uniform(5.5, 7.8), rng.uniform(1.2, 2.2)
    if rng.random() < 0.3:
        return
    for z in np.arange(rng.uniform(11, 24), 95, rng.uniform(22, 30)):
        lit = world.climate.dark and bool(rng.random() < 0.85)
        lamp = StreetLamp(curb + side * 0.45, float(z), height, -side * reach, colour, lit)
        world.things.append(lamp)
        if z < 60:
            world.lights += lamp.lights()


def _add_traffic(rng: np.random.Generator, world: World, condition: Condition) -> None:
    ground, dark = world.ground, world.climate.dark
    lane_centres = [
        ground.centre - ground.half_width + 0.35 + (k + 0.5) * ground.lane_width for k in range(ground.lanes)
    ]
    for k, x in enumerate(lane_centres):
        oncoming = k < ground.lanes / 2
        clear_ahead = abs(x) < ground.lane_width * 0.8
        z = rng.uniform(14, 26) if clear_ahead else rng.uniform(8, 18)
        while z < 75:
            if rng.random() < 0.62:
                vehicle = _vehicle(rng, world, x + rng.uniform(-0.2, 0.2), z, np.pi if oncoming else 0.0)
                _add_vehicle(world, vehicle)
                z += vehicle.length
            z += rng.uniform(9, 24)
    for side in (-1, 1):
        if rng.random() < 0.45:
            _add_parked(rng, world, side)
    if rng.random() < 0.22:
        z = rng.uniform(13, 24)
        turn = float(rng.choice([-1, 1])) * (np.pi / 2 + rng.uniform(-0.35, 0.35))
        crossing = _vehicle(rng, world, ground.centre + rng.uniform(-0.5, 0.5) * ground.half_width, z, turn)
        _clear(world, crossing)
        _add_vehicle(world, crossing)
    if condition is Condition.GLARE and dark:
        x, z = rng.uniform(-2.6, 2.6), rng.uniform(10, 17)
        source = _vehicle(rng, world, x, z, np.pi + rng.uniform(-0.06, 0.06), beam=3.0, small=True)
        _clear(world, source)
        _add_vehicle(world, source)
        front = source.z - source.length / 2
        world.glare += [(source.x + side * 0.68, 0.68, front) for side in (-1, 1)]


def _vehicle(
    rng: np.random.Generator, world: World, x: float, z: float, turn: float, *, beam: float = 1.0, small: bool = False
) -> Vehicle:
    model = Model(rng.choice([*Model], p=[0.28, 0.26, 0.2, 0.1, 0.09, 0.07]))
    if small and model in (Model.TRUCK, Model.BUS):
        model = Model.SUV
    length = {
        Model.SEDAN: 4.6,
        Model.HATCHBACK: 4.1,
        Model.SUV: 4.6,
        Model.VAN: 5.2,
        Model.TRUCK: 8.0,
        Model.BUS: 11.0,
    }[model]
    heavy = model in (Model.TRUCK, Model.BUS)
    colours = rng.permutation(len(_CAR_COLOURS))
    return Vehicle(
        model=model,
        x=x,
        z=z + (length / 2 if heavy else 0),
        turn=turn,
        length=length * rng.uniform(0.96, 1.05),
        width=2.45 if heavy else rng.uniform(1.75, 1.9),
        colour=_CAR_COLOURS[int(colours[0])],
        second=_CAR_COLOURS[int(colours[1])],
        running=True,
        lamps_on=world.climate.lamps_on,
        beam=beam * (1.0 if world.climate.dark else 0.6),
        shift=rng.uniform(0, 9),
    )


def _add_vehicle(world: World, vehicle: Vehicle) -> None:
    world.things.append(vehicle)
    if world.climate.dark and vehicle.z < 45:
        world.lights += vehicle.lights()


def _clear(world: World, vehicle: Vehicle) -> None:
    """Take vehicles away from where another one is put."""
    reach = vehicle.length / 2 + 1.0

    def near(thing: Thing) -> bool:
        if not isinstance(thing, Vehicle):
            return False
        return abs(thing.z - vehicle.z) < reach + thing.length / 2 and abs(thing.x - vehicle.x) < reach

    gone = {light for thing in world.things if isinstance(thing, Vehicle) and near(thing) for light in thing.lights()}
    world.things = [thing for thing in world.things if not near(thing)]
    world.lights = [light for light in world.lights if light not in gone]


def _add_parked(rng: np.random.Generator, world: World, side: int) -> None:
    ground = world.ground
    x = ground.centre + side * (ground.half_width - 1.0)
    if ground.half_width < 3.3 or abs(x) < 2.3:
        return
    z = rng.uniform(6.5, 14)
    while z < 60:
        turn = 0.0 if side > 0 else np.pi
        parked = _vehicle(rng, world, x, z, turn + rng.uniform(-0.03, 0.03), small=True)
        _clear(world, parked)
        still = Vehicle(**{**parked.__dict__, "running": bool(rng.random() < 0.2), "lamps_on": False})
        world.things.append(still)
        z += parked.length + rng.uniform(0.9, 7)


def _add_people(rng: np.random.Generator, world: World, condition: Condition) -> None:
    ground = world.ground
    count = int(rng.integers(4, 8))
    for k in range(count):
        side = float(rng.choice([-1, 1]))
        z = rng.uniform(6.5, 14) if k == 0 else rng.uniform(7, 20) if k < 4 else rng.uniform(12, 45)
        x = ground.centre + side * (ground.half_width + rng.uniform(0.5, ground.sidewalk - 0.4))
        if abs(x) > 0.36 * z:  # out of the picture: move them to where they are seen
            z = min(abs(x) / rng.uniform(0.18, 0.36), 40)
        turn = float(rng.choice([0, np.pi])) + rng.normal(0, 0.5)
        if rng.random() < 0.35:
            turn = float(rng.choice([-1, 1])) * np.pi / 2 + rng.normal(0, 0.3)
        _add_group(rng, world, x, z, turn)
    for _ in range(int(rng.integers(0, 3))):
        z = ground.crossing + rng.uniform(-1.2, 1.2) if ground.crossing is not None else rng.uniform(10, 26)
        x = ground.centre + rng.uniform(-0.95, 0.95) * ground.half_width
        _place(
            world, _person(rng, world, x, z, float(rng.choice([-1, 1])) * np.pi / 2 + rng.normal(0, 0.2), Pose.WALKING)
        )
    for _ in range(int(rng.integers(0, 3))):
        _add_bike(rng, world)
    for x, _, z in world.glare[:1]:
        for _ in range(2):  # the people that the glare hides
            near = rng.uniform(9, 15) if z > 100 else z + rng.uniform(-1.5, 6)
            beside = x * near / z + float(rng.choice([-1, 1])) * rng.uniform(0.9, 1.9)
            _place(world, _person(rng, world, beside, near, rng.uniform(0, 2 * np.pi), Pose.WALKING), force=True)


def _add_group(rng: np.random.Generator, world: World, x: float, z: float, turn: float) -> None:
    pose = Pose(rng.choice([Pose.WALKING, Pose.STANDING, Pose.PHONING], p=[0.68, 0.2, 0.12]))
    members = int(rng.choice([1, 1, 1, 2, 3]))
    for k in range(members):
        _place(world, _person(rng, world, x + k * rng.uniform(0.55, 0.8), z + k * rng.uniform(-0.4, 0.4), turn, pose))


def _place(world: World, person: Person, *, force: bool = False) -> None:
    """Put a person into the world unless a vehicle stands there; a forced one drives the vehicle away instead."""
    for thing in world.things:
        if isinstance(thing, Vehicle) and not force:
            forward = abs(np.cos(thing.turn)) * thing.length / 2 + abs(np.sin(thing.turn)) * thing.width / 2
            sideways = abs(np.sin(thing.turn)) * thing.length / 2 + abs(np.cos(thing.turn)) * thing.width / 2
            if abs(person.z - thing.z) < forward + 0.4 and abs(person.x - thing.x) < sideways + 0.3:
                return
    world.things.append(person)


def _person(rng: np.random.Generator, world: World, x: float, z: float, turn: float, pose: Pose) -> Person:
    child = rng.random() < 0.12
    return Person(
        x=x,
        z=z,
        height=rng.uniform(1.1, 1.4) if child else rng.uniform(1.58, 1.9),
        turn=turn,
        phase=rng.uniform(0, 2 * np.pi),
        pose=pose,
        build=rng.uniform(0.92, 1.18),
        clothes=_clothes(rng, dark=world.climate.dark),
        shift=float(rng.random()),
    )


def _clothes(rng: np.random.Generator, *, dark: bool) -> Clothes:
    def cloth(most: float) -> Colour:
        value = most * rng.uniform(0.08, 1.0) ** 1.6
        hue = rng.dirichlet([1.6, 1.6, 1.6]) * 3
        mix = rng.uniform(0, 0.85)
        red, green, blue = (float(value * (1 - mix + mix * channel)) for channel in hue)
        return (red, green, blue)

    most = 0.18 if dark else 0.6
    return Clothes(
        skin=_SKINS[int(rng.integers(len(_SKINS)))],
        hair=_HAIRS[int(rng.integers(len(_HAIRS)))],
        top=cloth(most),
        legs=cloth(0.4 * most),
        shoes=cloth(0.5 * most),
        stripes=0.11 if rng.random() < 0.12 else 0.0,
        coat=float(rng.choice([0.0, 0.02, 0.05, 0.17])),
        skirt=bool(rng.random() < 0.14),
        backpack=cloth(most) if rng.random() < 0.25 else None,
        hat=bool(rng.random() < 0.15),
        warmth=(rng.uniform(0.38, 0.7), rng.uniform(0.42, 0.66)),
    )


def _add_bike(rng: np.random.Generator, world: World) -> None:
    ground = world.ground
    motor, ridden = bool(rng.random() < 0.3), bool(rng.random() < 0.7)
    side = float(rng.choice([-1, 1]))
    x = ground.centre + side * (ground.half_width - 0.7 if ridden else ground.half_width + 0.6)
    z = max(rng.uniform(7, 22), abs(x) / 0.36)
    turn = float(rng.choice([0, np.pi])) + side * rng.uniform(0.1, 0.5) if ridden else np.pi / 2 + rng.normal(0, 0.4)
    colour = _CAR_COLOURS[int(rng.integers(len(_CAR_COLOURS)))]
    bike = Bike(x, z, turn, motor, colour, world.climate.lamps_on, ridden)
    if not ridden:
        world.things.append(bike)
        return
    rider = _person(rng, world, x - 0.15 * float(np.sin(turn)), z, turn, Pose.RIDING)
    before = len(world.things)
    _place(world, Person(**{**rider.__dict__, "lift": 0.86 - 0.47 * rider.height, "height": max(rider.height, 1.5)}))
    if len(world.things) > before:
        world.things.append(bike)
