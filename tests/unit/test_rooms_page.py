"""docs/rooms.svg and the table of rooms in docs/ARCHITECTURE.md say what tests/test_architecture.py holds."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from tests import ROOT
from tests.test_architecture import ARROWS, FACES, HOUSE

DRAWING = (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
SVG = "{http://www.w3.org/2000/svg}"

OUTSIDE = {"demo", "benchmarks", "jobs"}  # not drawn
EVERYBODY = {"pipeline", "pipeline.records", "pipeline.errors"}  # told of in a sentence of the page
ROOMS = {room: others - OUTSIDE for room, others in ARROWS.items() if room not in OUTSIDE}


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    width: float
    height: float
    texts: tuple[str, ...]

    def depth(self, x: float, y: float) -> float:
        """How far within the box a point lies; negative outside, 0 on its edge."""
        return min(x - self.left, self.left + self.width - x, y - self.top, self.top + self.height - y)


@dataclass(frozen=True)
class Arrow:
    source: str
    target: str
    points: tuple[tuple[float, float], ...]  # ends and corners


class Drawing:
    """Rooms and arrows as they are drawn."""

    def __init__(self, text: str) -> None:
        root = ET.fromstring(text)
        groups = [group for group in root.iter(f"{SVG}g") if "transform" in group.attrib]
        self.boxes = {group.attrib["id"]: self._box(group) for group in groups}
        self.arrows = [
            Arrow(path.attrib["data-from"], path.attrib["data-to"], self._points(path.attrib["d"]))
            for path in root.iter(f"{SVG}path")
            if "data-from" in path.attrib
        ]

    def _box(self, group: ET.Element) -> Box:
        left, top = map(float, re.findall(r"\d+", group.attrib["transform"]))
        rect = group.find(f"{SVG}rect")
        assert rect is not None
        texts = tuple(text.text or "" for text in group.iter(f"{SVG}text"))
        return Box(left, top, float(rect.attrib["width"]), float(rect.attrib["height"]), texts)

    def _points(self, path: str) -> tuple[tuple[float, float], ...]:
        assert set(re.findall("[A-Za-z]", path)) <= set("MLQ"), "straight lines with round corners"
        return tuple((float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path))

    def reach(self) -> dict[str, set[str]]:
        graph: dict[str, set[str]] = {room: set() for room in self.boxes}
        for arrow in self.arrows:
            graph[arrow.source].add(arrow.target)
        return closure(graph)

    def misplaced(self) -> list[str]:
        """Arrows that do not lead from one box's edge to the other's, or run through a box."""
        found = []
        for arrow in self.arrows:
            name = f"{arrow.source} -> {arrow.target}"
            ends = (arrow.source, arrow.points[0]), (arrow.target, arrow.points[-1])
            found += [f"{name}: not at {room}" for room, end in ends if self.boxes[room].depth(*end) != 0]
            within = [room for room, box in self.boxes.items() if runs_through(arrow, box)]
            found += [f"{name}: through {room}" for room in within]
        return found


def runs_through(arrow: Arrow, box: Box) -> bool:
    """Whether a point of the arrow lies inside; its lines go along the axes, looked at unit by unit."""
    for (x, y), (to_x, to_y) in zip(arrow.points, arrow.points[1:], strict=False):
        steps = max(int(abs(to_x - x) + abs(to_y - y)), 1)
        for step in range(steps + 1):
            part = step / steps
            if box.depth(x + part * (to_x - x), y + part * (to_y - y)) > 0:
                return True
    return False


def closure(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    reach = {room: set(others) for room, others in graph.items()}
    for middle, beyond in reach.items():
        for others in reach.values():
            if middle in others:
                others.update(beyond)
    return reach


def missing_and_made_up(drawing: Drawing) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """(arrows of the table that the drawn ones do not imply, arrows implied that the table does not have)."""
    real, drawn = (
        {(room, other) for room, others in reach.items() for other in others}
        for reach in (closure(ROOMS), drawing.reach())
    )
    return real - drawn, drawn - real


def test_every_room_is_drawn() -> None:
    assert set(Drawing(DRAWING).boxes) == set(ROOMS)


def test_the_drawn_arrows_are_those_of_the_table() -> None:
    assert missing_and_made_up(Drawing(DRAWING)) == (set(), set())


def test_no_drawn_arrow_follows_from_others() -> None:
    reach = closure(ROOMS)
    for arrow in (drawing := Drawing(DRAWING)).arrows:
        others = {one.target for one in drawing.arrows if one.source == arrow.source} - {arrow.target}
        assert not any(arrow.target in reach[other] for other in others), arrow


def test_arrows_lead_from_box_to_box() -> None:
    assert Drawing(DRAWING).misplaced() == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_box_says_what_the_room_is(room: str) -> None:
    name, *question = Drawing(DRAWING).boxes[room].texts
    if room in FACES:
        assert (name, " ".join(question)) == (room.rpartition(".")[2], question_of(room))
    else:
        assert name == HOUSE.files[room].name


def question_of(room: str) -> str:
    return HOUSE.files[room].read_text(encoding="utf-8").removeprefix('"""').partition("\n")[0]


def rows_of(page: str) -> dict[str, tuple[str, str, set[str]]]:
    """Room -> question, file to read first, and the rooms it imports, of the page's table."""
    rows = {}
    for folder, *cells in re.findall(r"^\| `(\w+/\w+)/` \| (.+) \| `(\w+\.py)` \| (.*?) ?\|$", page, re.M):
        package, question, first, names = folder.partition("/")[0], *cells
        others = {
            name if "." in name or name in OUTSIDE else f"{package}.{name}"
            for name in names.split(", ")
            if name
        }
        rows[folder.replace("/", ".")] = (question, first, others)
    return rows


def test_the_table_of_rooms_is_that_of_the_code() -> None:
    rows = rows_of(PAGE)
    assert sorted(rows) == FACES
    for room, (question, first, others) in rows.items():
        assert question == question_of(room)
        assert re.search(rf"Start with\s+{re.escape(first)}", HOUSE.files[room].read_text(encoding="utf-8"))
        assert others == ARROWS[room] - EVERYBODY


def test_a_wrong_drawing_is_found() -> None:
    arrow = '<path data-from="pipeline.output" data-to="pipeline.stores" d="M 93 368 L 93 498"/>'
    assert arrow in DRAWING
    missing, _ = missing_and_made_up(Drawing(DRAWING.replace(arrow, "")))
    assert ("pipeline.output", "pipeline.stores") in missing
    turned = arrow.replace("from", "x").replace("to=", "from=").replace("data-x", "data-to")
    _, made_up = missing_and_made_up(Drawing(DRAWING.replace(arrow, turned)))
    assert ("pipeline.stores", "pipeline.output") in made_up
    assert Drawing(DRAWING.replace(arrow, turned)).misplaced() == [
        "pipeline.stores -> pipeline.output: not at pipeline.stores",
        "pipeline.stores -> pipeline.output: not at pipeline.output",
    ]
    long = arrow.replace("M 93 368 L 93 498", "M 93 368 L 93 330 L 200 330 L 200 498 L 93 498")
    assert Drawing(DRAWING.replace(arrow, long)).misplaced() == [
        "pipeline.output -> pipeline.stores: through pipeline.output",
        "pipeline.output -> pipeline.stores: through pipeline.corpus",
    ]


def test_a_wrong_table_is_found() -> None:
    assert rows_of(PAGE.replace("`store.py` | stores |", "`store.py` | stores, cluster |"))[
        "pipeline.output"
    ] == (
        "What is committed?",
        "store.py",
        {"pipeline.stores", "pipeline.cluster"},
    )
