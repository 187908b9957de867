"""File names of a json never lead out of its folder."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cvpeft.data.coco import load_coco
from cvpeft.data.images import find_image, is_file
from cvpeft.errors import DataError

from .sets import coco, write

PIECES = [
    "..",
    ".",
    "",
    "a",
    "images",
    "etc",
    "passwd",
    "~",
    "C:",
    "c:",
    " ",
    "井",
    "\0",
    "\ud800",
    "a" * 300,
    "link",
    "\n",
]
names = st.one_of(
    st.text(max_size=40),
    st.builds(
        lambda head, parts, glue: head + glue.join(parts),
        st.sampled_from(["", "/", "//", "\\", "\\\\", "./", "../"]),
        st.lists(st.sampled_from(PIECES), max_size=6),
        st.sampled_from(["/", "\\", "//"]),
    ),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a link that leads out of it and one that stays inside."""
    outside = tmp_path_factory.mktemp("outside")
    folder = tmp_path_factory.mktemp("data") / "root"
    (folder / "images").mkdir(parents=True)
    (folder / "link").symlink_to(outside)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "images" / "inside").symlink_to(folder / "images")
    return folder.resolve()


@settings(max_examples=1000, deadline=None)
@given(name=names)
@example(name="..\\..\\etc\\passwd")
@example(name="link/../../x")
@example(name="loop/a.png")
def test_any_string_stays_inside_or_is_refused(root: Path, name: str) -> None:
    try:
        path, slashed = find_image(root, name, "here")
    except DataError:
        return
    assert path.is_relative_to(root)
    assert "\\" not in slashed
    assert not PureWindowsPath(slashed).drive or slashed.startswith("//")
    assert not is_file(path)


@settings(max_examples=1000, deadline=None)
@given(listed=st.lists(names, min_size=1, max_size=6))
@example(listed=["images/inside/a.png", "images/../images/a.png", "link/a.png", "images/b.png", "/a.png"])
def test_folders_that_are_known_change_no_answer(root: Path, listed: list[str]) -> None:
    folders: dict[str, str] = {}

    def answer(name: str, known: dict[str, str] | None) -> object:
        try:
            return find_image(root, name, "here", known)
        except DataError as fault:
            return str(fault)

    assert [answer(name, folders) for name in listed] == [answer(name, None) for name in listed]


@pytest.mark.parametrize(
    "name", ["link/a.png", "link", "images/inside/../../../x", "/etc/passwd", "D:\\a.png", "//host/a"]
)
def test_ways_out_are_refused(root: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"E-PATH here - file_name .* leads out of the json's folder"):
        find_image(root, name, "here")


@pytest.mark.parametrize("name", ["images/inside/a.png", "images/../a.png", ".\\images\\a.png"])
def test_detours_that_stay_inside_are_fine(root: Path, name: str) -> None:
    assert find_image(root, name, "here")[0].name == "a.png"


@pytest.mark.parametrize("name", ["", "  ", None, 3, ["a.png"], True])
def test_what_is_no_name(root: Path, name: object) -> None:
    with pytest.raises(DataError, match="E-NAME here"):
        find_image(root, name, "here")


def test_a_linked_image_outside_is_refused_by_the_reader(tmp_path: Path) -> None:
    path = write(tmp_path / "city", coco())
    target = tmp_path / "secret.png"
    (tmp_path / "city/images/1.png").rename(target)
    (tmp_path / "city/images/1.png").symlink_to(target)
    with pytest.raises(DataError, match="E-PATH"):
        load_coco([path])
