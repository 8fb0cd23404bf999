"""From a folder or a CSV file to pairs: what is found, and every mistake with its place."""

from pathlib import Path

import pytest

from client.pairs import InputError, find_pairs, name_to_id, read_csv


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"picture")
    return folder


def problems(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_csv(path)
    return [problem.removeprefix(str(path)) for problem in caught.value.problems]


# --- folders ------------------------------------------------------------------------------------------------------
def test_every_way_to_name_a_pair_is_found(tmp_path: Path) -> None:
    make(
        tmp_path,
        *("12_front.png", "12_back.JPG", "tee-Front.webp", "tee-BACK.tiff", "only_front.avif"),
        *("hood/front.png", "hood/back.png", "cap/back.bmp", "front_back.gif"),
    )
    pairs, others = find_pairs(tmp_path)
    found = {
        pair.id: {side: str(p.relative_to(tmp_path)) for side, p in pair.sides.items() if isinstance(p, Path)}
        for pair in pairs
    }
    assert found == {
        12: {"front": "12_front.png", "back": "12_back.JPG"},
        "cap": {"back": "cap/back.bmp"},
        "front": {"back": "front_back.gif"},
        "hood": {"front": "hood/front.png", "back": "hood/back.png"},
        "only": {"front": "only_front.avif"},
        "tee": {"front": "tee-Front.webp", "back": "tee-BACK.tiff"},
    }
    assert others == []


def test_pictures_that_belong_to_no_pair_are_named_and_other_files_are_not(tmp_path: Path) -> None:
    make(
        tmp_path,
        *("a_front.png", "logo.png", "confront.png", "hood/side.png", "a_front_rmbg.png"),
        *("a_front.txt", ".b_front.png", ".git/front.png", "deep/er/front.png", "notes.md"),
    )
    pairs, others = find_pairs(tmp_path)
    assert [pair.id for pair in pairs] == ["a"]
    assert sorted(path.name for path in others) == ["a_front_rmbg.png", "confront.png", "logo.png", "side.png"]


def test_a_side_that_is_there_twice_is_named_with_both_files(tmp_path: Path) -> None:
    make(tmp_path, "a_front.png", "a-front.jpg", "b/back.png", "b_back.png", "c_front.png")
    with pytest.raises(InputError) as caught:
        find_pairs(tmp_path)
    assert caught.value.problems == [
        f"{tmp_path / 'a_front.png'} and {tmp_path / 'a-front.jpg'} are both the front of 'a'",
        f"{tmp_path / 'b_back.png'} and {tmp_path / 'b/back.png'} are both the back of 'b'",
    ]


def test_a_folder_without_pairs_says_how_to_name_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no pairs: name them NAME_front\.png"):
        find_pairs(make(tmp_path, "logo.png"))
    with pytest.raises(InputError, match="there is no folder"):
        find_pairs(tmp_path / "nowhere")


def test_any_name_becomes_an_id_and_different_names_stay_apart() -> None:
    assert name_to_id("Summer_tee-2") == "Summer_tee-2"
    assert name_to_id("0042") == "0042"  # as a number it would lose its zeros
    names = ["Summer tee", "Summer  tee", "Summer-tee!", "футболка", "майка", "x" * 65, "x" * 66, " "]
    ids = [str(name_to_id(name)) for name in names]
    assert ids[0].startswith("Summer-tee-")
    assert len(set(ids)) == len(names)
    assert all(len(id) <= 64 and id.isascii() and not set(id) & set(" !./") for id in ids)


# --- CSV files ----------------------------------------------------------------------------------------------------
def test_a_csv_gives_files_addresses_and_options(tmp_path: Path) -> None:
    make(tmp_path, "art/f.png", "b.jpg")
    table = tmp_path / "designs.csv"
    table.write_text(
        "id,front,back,options\n123,art/f.png,https://example.com/b.png,\n\n"
        'tee-1,,b.jpg,"{""holes"": ""auto"", ""print"": {""dpi"": 150}}"\n',
        "utf-8-sig",
    )
    first, second = read_csv(table)
    assert (first.id, first.front, first.back) == (123, tmp_path / "art/f.png", "https://example.com/b.png")
    assert (second.id, second.sides) == ("tee-1", {"back": tmp_path / "b.jpg"})
    assert (first.options, second.options) == ({}, {"holes": "auto", "print": {"dpi": 150}})


def test_semicolons_separate_too(tmp_path: Path) -> None:
    make(tmp_path, "f.png").joinpath("t.csv").write_text('id;front;options\n1;f.png;"{""proofs"": true}"\n')
    assert read_csv(tmp_path / "t.csv")[0].options == {"proofs": True}


def test_every_mistake_is_named_with_its_line(tmp_path: Path) -> None:
    table = make(tmp_path, "f.png") / "t.csv"
    table.write_text(
        "id,front,back,options\n"
        "1,f.png,,\n"
        "bad id,f.png,,\n"
        "2,nowhere.png,gone.png,\n"
        "3,,,\n"
        '4,f.png,,"{""proofs"": tru}"\n'
        "5,f.png,,[1]\n"
        '6,f.png,,"{\n""proofs"": true}"\n'
        "1,f.png,,\n"
        "7,f.png,,{},more\n"
        '8,f.png,,"never closed\n'
    )
    assert problems(table) == [
        ", line 3: id 'bad id' is not 1-64 of A-Z a-z 0-9 _ -",
        f", line 4: front: there is no file {tmp_path / 'nowhere.png'}",
        f", line 4: back: there is no file {tmp_path / 'gone.png'}",
        ", line 5: neither front nor back is given",
        ", line 6: options: is not JSON: Expecting value: line 1 column 12 (char 11)",
        ', line 7: options: is not a JSON object such as {"proofs": true}',
        ", line 10: id 1 is on line 2 already",
        ', line 11: more cells than columns; write " around text with a separator in it',
        ", line 12: options: is not JSON: Expecting value: line 1 column 1 (char 0)",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("front\nf.png\n", [", line 1: there is no column id"]),
        ("id,colour\n1,red\n", [", line 1: unknown column 'colour'; there are id, front, back, options",
                               ", line 1: there is no column front or back"]),
        ("id,front,front\n1,a,b\n", [", line 1: a column is there twice"]),
        ("id,front\n", [" has no rows"]),
        ("", [", line 1: there is no column id", ", line 1: there is no column front or back"]),
    ],
)  # fmt: skip
def test_a_table_with_wrong_columns_says_which(tmp_path: Path, text: str, expected: list[str]) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert problems(tmp_path / "t.csv") == expected


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    assert problems(tmp_path / "gone.csv") == [" cannot be read: No such file or directory"]
    (tmp_path / "t.csv").write_bytes("id,front\n1,caf\u00e9.png\n".encode("latin-1"))
    assert problems(tmp_path / "t.csv") == [" is not UTF-8; save it as CSV UTF-8"]
