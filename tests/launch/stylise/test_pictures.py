"""Which pictures a command names, what pairs they make, and tables of pairs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.stylise.loading import ahead
from launch.stylise.pictures import SHOWN, Failures, all_pairs, find_pictures, read_pairs, unique_names
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


def test_a_list_names_pictures_beside_it(folder: Path) -> None:
    (folder / "list.txt").write_text("dog.PNG\n\n more/film.gif \ncat.jpg\n")
    assert names(find_pictures([folder / "cat.jpg", folder / "list.txt"]), folder) == ["cat.jpg", "dog.PNG", "more/film.gif"]
    (folder / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match=r"empty\.txt lists no pictures: write one path on each line"):
        find_pictures([folder / "empty.txt"])


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
    words += ["line 6: the name a is taken", "line 7: '../up' is not a file name"]
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


def test_pictures_in_formats_that_are_not_read_are_told(folder: Path) -> None:
    failures = Failures()
    for name in ("IMG_1.HEIC", "b.avif", "._b.avif", "notes.md", "Thumbs.db", "desktop.ini", "._cat.png"):
        (folder / name).touch()
    assert names(find_pictures([folder], failures), folder) == ["cat.jpg", "cat.png", "dog.PNG"]
    assert list(failures.reasons) == [str(folder / "IMG_1.HEIC"), str(folder / "b.avif")]
    assert failures.reasons[str(folder / "b.avif")].endswith(
        "b.avif: .avif files are not supported; convert it to JPEG or PNG"
    )


def test_a_folder_of_pictures_that_are_not_read(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.heic").touch()
    with pytest.raises(UserError, match=r"no picture in .*; 3 such as 0\.heic are not supported"):
        find_pictures([tmp_path])


def test_paths_that_no_file_system_takes_do_not_exist() -> None:
    with pytest.raises(UserError, match="does not exist"):
        find_pictures([Path("x" * 5000)])


@pytest.mark.parametrize("cell", ["~nobody_of_that_name/x.png", "x" * 5000, "a\0b.png"])
def test_a_cell_that_is_no_path_costs_its_own_line_only(folder: Path, cell: str) -> None:
    failures = Failures()
    pairs = read_pairs(table(folder, f"content,style\ndog.PNG,{cell}\n{cell},dog.PNG\ndog.PNG,cat.jpg\n"), failures)
    assert [pair.name for pair in pairs] == ["dog__cat"]
    assert [reason.endswith(" does not exist") for reason in failures.reasons.values()] == [True, True]
    assert max(map(len, failures.reasons.values())) < 600


def test_a_long_name_is_shortened_the_same_way_in_any_batch() -> None:
    files = [Path(f"{'x' * 200}{number}.png") for number in range(2)]
    assert list(unique_names(files)) == [next(iter(unique_names([file]))) for file in files]


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        (os.fsdecode(b"caf\xe9"), "caf_"),
        ("me [1]", "me [1]"),
        ("-x", "-x"),
        (".hidden", "_hidden"),
        ("two\nlines", "two_lines"),
        ("漢字", "漢字"),
    ],
)
def test_names_of_results_are_safe(stem: str, name: str) -> None:
    assert list(unique_names([Path(f"{stem}.png")])) == [name]


def test_failures_with_names_that_are_not_utf_8(tmp_path: Path) -> None:
    failures, record = Failures(), tmp_path / "failed.csv"
    name = os.fsdecode(b"caf\xe9.png")
    failures.add(name, f"{name} is broken")
    failures.write(record)
    assert record.read_text(encoding="utf-8").splitlines()[1] == "caf\\udce9.png,caf\\udce9.png is broken"
    assert failures.lines(record)[1].encode() == b"  caf\\udce9.png is broken"
