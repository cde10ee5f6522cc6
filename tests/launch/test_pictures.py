"""Which pictures a command names, what pairs they make, and tables of pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.loading import ahead
from launch.pictures import SHOWN, Failures, all_pairs, find_pictures, read_pairs, unique_names
from stylevar.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat.png", "cat.jpg", "dog.PNG", "notes.txt", ".hidden.png", "more/film.gif", "more/cat.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(files: list[Path], folder: Path) -> list[str]:
    return [str(file.relative_to(folder)) for file in files]


def test_files_folders_and_globs(folder: Path) -> None:
    assert names(find_pictures([folder]), folder) == ["cat.jpg", "cat.png", "dog.PNG"]
    assert names(find_pictures([folder / "**" / "*.gif"]), folder) == ["more/film.gif"]
    assert names(find_pictures([folder / "dog.PNG", folder, folder / "c*.png"]), folder) == ["dog.PNG", "cat.jpg", "cat.png"]


def test_a_folder_that_is_named_like_a_picture(folder: Path) -> None:
    before = find_pictures([folder])
    (folder / "album.png").mkdir()
    assert find_pictures([folder]) == before


def test_a_file_with_signs_of_a_glob_in_its_name(folder: Path) -> None:
    (folder / "me [1].png").touch()
    assert names(find_pictures([folder / "me [1].png"]), folder) == ["me [1].png"]


def test_sources_without_pictures(folder: Path) -> None:
    (folder / "empty").mkdir()
    for source, words in {"empty": "no picture in", "gone.png": "does not exist", "*.bmp": "matches no file"}.items():
        with pytest.raises(UserError, match=words):
            find_pictures([folder, folder / source])


def test_equal_stems_stay_apart(folder: Path) -> None:
    named = unique_names(find_pictures([folder, folder / "more"]))
    assert list(named) == ["cat_jpg", "cat_png", "dog", "cat_png_2", "film"]
    assert len(set(named.values())) == 5


def test_names_stay_within_what_a_disk_takes() -> None:
    long = [Path(f"{'ü' * 120}{number}.png") for number in range(3)]
    pairs = all_pairs(long, long)
    assert len({pair.name for pair in pairs}) == 9
    assert max(len(pair.name.encode()) for pair in pairs) <= 240


def test_pairs_of_one_name_stay_apart() -> None:
    pairs = all_pairs([Path("a.png"), Path("a__b.png")], [Path("c.png"), Path("b__c.png")])
    assert [pair.name for pair in pairs] == ["a__c", "a__b__c", "a__b__c_2", "a__b__b__c"]


def table(folder: Path, text: str | bytes) -> Path:
    path = folder / "pairs.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_pairs_relative_to_their_table(folder: Path) -> None:
    failures = Failures()
    lines = [
        "\ufeffstyle, content,name,remark",
        "more/cat.png,dog.PNG,,x",
        "",
        "cat.jpg,dog.PNG,mine,",
        "more/cat.png,dog.PNG,,",
    ]
    pairs = read_pairs(table(folder, "\r\n".join(lines)), failures)
    assert [(pair.name, pair.content.name, pair.style.name) for pair in pairs] == [
        ("dog__cat", "dog.PNG", "cat.png"),
        ("mine", "dog.PNG", "cat.jpg"),
        ("dog__cat_2", "dog.PNG", "cat.png"),
    ]
    assert not failures.reasons


def test_bad_lines_are_told_and_passed_over(folder: Path) -> None:
    failures = Failures()
    lines = ["content,style,name", "dog.PNG,cat.jpg,a", "dog.PNG,gone.png,", "dog.PNG", ",cat.jpg,", "dog.PNG,cat.jpg,a"]
    lines += ["dog.PNG,cat.jpg,../up", "dog.PNG,cat.jpg,b"]
    pairs = read_pairs(table(folder, "\n".join(lines)), failures)
    assert [pair.name for pair in pairs] == ["a", "b"]
    found = list(failures.reasons.values())
    words = ["line 3: .*gone.png does not exist", "line 4: style is empty", "line 5: content is empty"]
    words += ["line 6: the name a is taken", "line 7: '../up' is no file name"]
    for reason, expected in zip(found, words, strict=True):
        with pytest.raises(UserError, match=expected):
            raise UserError(reason)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no column content and style: its first line is 'nothing'"),
        ("content;style\na.png;b.png\n", "has no column content and style: its first line is 'content;style'"),
        ("content,picture\na.png,b.png\n", "has no column style"),
        ("content,style\n", "has no pairs"),
        ("content,style\nä.png,b.png\n".encode("latin-1"), r"is not UTF-8 text \(byte 14\)"),
        ("content,style\na.png,b.png\n".encode("utf-16"), "is not UTF-8"),
    ],
)
def test_tables_that_are_none(folder: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_pairs(table(folder, text), Failures())


def test_missing_tables(folder: Path) -> None:
    for path in (folder / "gone.csv", folder):
        with pytest.raises(UserError, match="cannot be read"):
            read_pairs(path, Failures())


def test_failures_are_summed_up_and_kept(tmp_path: Path) -> None:
    failures, record = Failures(), tmp_path / "failed.csv"
    record.write_text("of an earlier call")
    failures.write(record)
    assert not record.exists()
    assert failures.lines(record) == []
    for number in range(SHOWN + 2):
        failures.add(f"{number}.png", f"{number}.png, the worst")
    failures.write(record)
    first, *shown, last = failures.lines(record)
    assert first == f"{SHOWN + 2} could not be used (all in {record}):"
    assert shown == [f"  {number}.png, the worst" for number in range(SHOWN)]
    assert last == "  and 2 more"
    assert len(record.read_text().splitlines()) == SHOWN + 3


def test_items_made_ahead_are_the_same_and_errors_come_through() -> None:
    assert list(ahead(iter("abc"))) == ["a", "b", "c"]

    def broken():
        yield 1
        raise UserError("the disk is gone")

    items = ahead(broken())
    assert next(items) == 1
    with pytest.raises(UserError, match="the disk is gone"):
        next(items)
