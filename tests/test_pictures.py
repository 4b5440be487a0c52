"""Labelled images from every kind of source, and what is said of those that cannot be read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_images as tiny
from PIL import Image

from mergetomix.data import reading
from mergetomix.data.examples import Examples
from mergetomix.data.labelled_images import read
from mergetomix.data.leaks import overlap, said_by
from mergetomix.data.splits import split
from mergetomix.errors import DataError


def get(
    given: Any, classes: Any = None, skip: bool = False, where: str = tiny.WHERE, **changes: Any
) -> Examples:
    return read(tiny.source(given, classes, **changes), where, skip)


def folder_of(
    root: Path,
    names: tuple[str, ...] = ("cat", "dog"),
    count: int = 3,
    suffix: str = ".png",
    seed: int = 0,
) -> Path:
    """A folder for each class."""
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for j, image in enumerate(tiny.pixels(count, seed + i)):
            Image.fromarray(image).save(root / name / f"{j}{suffix}")
    return root


def png(image: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png")
    return out.getvalue()


def labels(examples: Examples) -> list[str]:
    return [item.label for item in examples.items]


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    found = get(folder_of(tmp_path))
    assert labels(found) == ["cat"] * 3 + ["dog"] * 3
    assert found.items[0].space is not None and found.items[0].space.classes == ("cat", "dog")
    assert found.items[0].picture is not None and found.items[0].picture.size == (
        tiny.SIDE,
        tiny.SIDE,
    )
    assert np.array_equal(np.asarray(found.items[0].picture.open()), tiny.pixels(3)[0])


def test_splits_are_folders_and_a_class_of_one_split_is_a_class_of_all(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", ("cat", "dog", "train_station"))
    folder_of(tmp_path / "test", ("cat", "dog"), count=1, seed=9)
    train, test = get(tmp_path), get(tmp_path, split="test")
    assert len(train.items) == 9 and labels(test) == ["cat", "dog"]
    assert {item.space.classes for item in (*train.items, *test.items) if item.space} == {
        ("cat", "dog", "train_station")
    }
    with pytest.raises(DataError, match="no split 'valid' in"):
        get(tmp_path, split="valid")


def test_a_class_called_as_a_split_is_a_class(tmp_path: Path) -> None:
    assert set(labels(get(folder_of(tmp_path, ("test", "training"))))) == {"test", "training"}


@pytest.mark.parametrize("colours", [True, False])
def test_arrays(tmp_path: Path, colours: bool) -> None:
    x, y = tiny.pixels(6, colours=colours), np.array([0, 1, 2, 0, 1, 2])
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", x_train=x[:4], y_train=y[:4, None], x_test=x[4:], y_test=y[4:])
    assert labels(get(tmp_path / "a.npz")) == ["0", "1", "2", "0", "1", "2"]
    assert labels(get(tmp_path / "a.npz", tiny.CLASSES)) == [tiny.CLASSES[i] for i in y]
    assert len(get(tmp_path / "b.npz").items) == 4
    assert labels(get(tmp_path / "b.npz", tiny.CLASSES, split="test")) == ["blue dog", "green cow"]


def test_the_same_pixels_are_the_same_example_in_every_format(tmp_path: Path) -> None:
    import datasets

    x = tiny.pixels(4)
    names = ["cat", "dog"]
    folder = tmp_path / "folder"
    for i, image in enumerate(x):
        (folder / names[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / names[i % 2] / f"{i}.png")
    np.savez(tmp_path / "a.npz", x=x[[0, 2, 1, 3]], y=[0, 0, 1, 1])
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    table = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": png(x[i]), "path": None} for i in (0, 2, 1, 3)],
            "label": [0, 0, 1, 1],
        },
        features=features,
    )
    table.to_parquet(str(tmp_path / "a.parquet"))
    table.save_to_disk(str(tmp_path / "disk"))
    (folder / "names.csv").write_text(
        "image,label\ncat/0.png,cat\ncat/2.png,cat\ndog/1.png,dog\ndog/3.png,dog\n"
    )
    found = [
        get(tmp_path / "a.npz", names),
        get(tmp_path / "a.parquet"),
        get(tmp_path / "disk"),
        get(folder / "names.csv"),
        get(folder),
        get(table),
        get([{"image": Image.fromarray(x[i]), "label": names[i % 2]} for i in (0, 2, 1, 3)]),
        get([{"image": png(x[i]), "label": names[i % 2]} for i in (0, 2, 1, 3)]),
    ]
    (folder / "names.csv").unlink()
    found.append(get(folder))
    assert len({each.fingerprint() for each in found}) == 1
    some, others = (said_by(each.items, {}) for each in found[:2])
    assert len(overlap(some, others).whole) == 4


def test_draws_and_splits_are_those_of_texts(tmp_path: Path) -> None:
    found = get(tiny.rows(40), max_examples=20)
    assert len(found.items) == 20 and found.num_rows == 40
    select, report = split(found, 0.5, 0)
    assert len(select) + len(report) == 20 and not {s.row for s in select} & {r.row for r in report}


def test_an_image_lies_as_its_file_says(tmp_path: Path) -> None:
    """A photograph taken upright is often stored on its side, with a note."""
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    image.save(tmp_path / "a" / "x.png", exif=exif)
    image.save(tmp_path / "b" / "y.png")
    one, two = get(tmp_path).items
    assert one.picture is not None and one.picture.size == (6, 8)
    assert two.picture is not None and two.picture.size == (8, 6)


# --- what cannot be read


def fails(
    message: str, given: Any, classes: Any = None, key: str | None = None, **changes: Any
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        get(given, classes, **changes)
    if key is not None:
        assert caught.value.where == key


def test_a_broken_image_is_named_or_skipped(tmp_path: Path) -> None:
    folder_of(tmp_path)
    whole = (tmp_path / "cat" / "1.png").read_bytes()
    (tmp_path / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dog" / "0.png").write_bytes(b"nothing")
    fails(r"an image does not decode \(2 in all\): .*cat/1\.png", tmp_path, key="datasets.x.path")
    found = get(tmp_path, skip=True)
    assert labels(found) == ["cat", "cat", "dog", "dog"]
    assert [
        note
        for note in found.notes
        if "passed over 2 images that do not decode" in note and "1.png" in note
    ]


def test_no_image_that_decodes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of 2 images decodes"):
        get(tmp_path, skip=True)


def test_labels_outside_the_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=tiny.pixels(3), y=[0, 1, 5])
    fails(
        r"row 2 .*label 5 is not among the 2 classes \(cat, dog\)",
        tmp_path / "a.npz",
        ["cat", "dog"],
    )
    fails(
        "label 'cow' is not among",
        [{"image": tiny.pixels(1)[0], "label": "cow"}],
        ["cat", "dog"],
        "datasets.x.label",
    )
    fails("classes must be at least 2", [{"image": tiny.pixels(1)[0], "label": "cow"}])


def test_sources_that_are_none(tmp_path: Path) -> None:
    (folder_of(tmp_path / "e", count=0) / "cat" / "notes.me").write_text("nothing")
    fails("no image in", tmp_path / "e")
    Image.fromarray(tiny.pixels(1)[0]).save(tmp_path / "e" / "x.png")
    fails("lies in no class's folder", tmp_path / "e")
    np.savez(tmp_path / "a.npz", a=tiny.pixels(2))
    fails("holds a, but neither x and y nor x_train and y_train", tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=tiny.pixels(2), y=[1, 2, 3])
    fails("one label for each image", tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(b"nothing")
    fails(r"c\.npz is no archive", tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}, None], dtype=object), y=[0, 1])
    fails(r"d\.npz is no archive of plain arrays", tmp_path / "d.npz")
    fails("no column 'image'", [{"picture": 1, "label": 0}], key="datasets.x.image")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"not \(4, 4, 2\)"),
        (np.full((4, 4), 0.5), "whole numbers from 0 to 255, not float64"),
        (np.full((4, 4), 300), "up to 300"),
        (7, "must be an image"),
    ],
)
def test_cells_that_are_no_image(value: Any, message: str) -> None:
    fails(message, [{"image": value, "label": "cat"}], ["cat", "dog"])


def test_images_are_not_for_a_language_model() -> None:
    with pytest.raises(DataError, match="not for a language model"):
        reading.read(tiny.source(tiny.rows(3)), tiny.WHERE)


def test_a_palette_is_part_of_an_image(tmp_path: Path) -> None:
    """Two files of the same indices and other colours are two images."""
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        image = Image.new("P", (tiny.SIDE, tiny.SIDE), 0)
        image.putpalette([*colour, *[0] * 765])
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "x.png")
    blue, red = get(tmp_path).items
    assert blue.picture is not None and red.picture is not None
    assert blue.picture.digest != red.picture.digest
    assert red.picture.open().getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_pixels_are_refused(tmp_path: Path, mode: str) -> None:
    folder_of(tmp_path)
    Image.new(mode, (4, 4)).save(tmp_path / "cat" / "deep.tif")
    fails(r"deep\.tif: it has .* pixels, which are deeper than 8 bits", tmp_path)


def test_numbers_in_a_table_are_numbers(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "files", ("a",))
    (folder / "names.csv").write_text("image,label\na/0.png,0\na/1.png,2\n")
    assert labels(get(folder / "names.csv", tiny.CLASSES)) == ["red cat", "green cow"]
    space = get(folder / "names.csv").items[0].space
    assert space is not None and (space.classes, space.is_named) == (("0", "2"), False)


@pytest.mark.parametrize("value", [None, float("nan"), True, b"cat", ["cat"], "", 0.5])
def test_labels_that_are_none(value: Any) -> None:
    given = [
        {"image": tiny.pixels(1)[0], "label": "cat"},
        {"image": tiny.pixels(1)[0], "label": value},
    ]
    for classes in (["cat", "dog"], None):
        fails(
            r"row 1 .*a label must be a class's name or its number",
            given,
            classes,
            "datasets.x.label",
        )


def test_a_stray_table_among_images_is_no_dataset(tmp_path: Path) -> None:
    (folder_of(tmp_path) / "cat" / "notes.json").write_text("{}")
    assert len(get(tmp_path).items) == 6


def test_a_column_that_a_folder_or_an_archive_has_not_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=tiny.pixels(3), y=[0, 1, 0])
    for given in (tmp_path / "a.npz", folder_of(tmp_path / "files")):
        fails("no column 'labl', did you mean 'label'", given, key="datasets.x.label", label="labl")


# --- classes whose names are digits


FIVE = ("1", "2", "3", "4", "5")


def rows_of(labels: Any) -> list[dict[str, Any]]:
    return [
        {"image": np.full((4, 4), i, dtype=np.uint8), "label": label}
        for i, label in enumerate(labels)
    ]


@pytest.mark.parametrize("labels", [range(5), ["0", "1", "2", "3", "4"], [0.0, 1.0, 2.0, 3.0, 4.0]])
def test_a_whole_number_counts_classes_whatever_their_names(labels: Any) -> None:
    assert [item.label for item in get(rows_of(labels), FIVE).items] == list(FIVE)


def test_a_text_that_is_a_name_is_that_class() -> None:
    assert [item.label for item in get(rows_of(["3", "1", "5"]), FIVE).items] == ["3", "1", "5"]
    assert [item.label for item in get(rows_of([2, 0, "1"]), FIVE).items] == ["3", "1", "1"]
    with pytest.raises(DataError, match="the label 5 is not among the 5 classes"):
        get(rows_of([1, 5]), FIVE)


def test_a_class_label_of_digits_counts_too(tmp_path: Path) -> None:
    """Folders named 0 to 11 are classes in the order of their texts: 0, 1, 10, 11, 2, ..."""
    import datasets

    names = sorted(map(str, range(12)))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    table = datasets.Dataset.from_list(rows_of(range(12)), features=features)
    table.to_parquet(str(tmp_path / "stars.parquet"))
    found = get(str(tmp_path / "stars.parquet"))
    assert [item.label for item in found.items] == names


# --- folders as people have them


def test_splits_of_a_year_are_splits(tmp_path: Path) -> None:
    """As COCO's: train2017 and val2017 are not read together."""
    folder_of(tmp_path / "train2017")
    folder_of(tmp_path / "val2017", count=1, seed=9)
    assert len(get(tmp_path).items) == 6
    assert len(get(tmp_path, split="validation").items) == 2


def test_what_of_a_folder_is_odd_is_said(tmp_path: Path) -> None:
    folder_of(tmp_path)
    folder_of(tmp_path / "more", ("cat", "cow"), seed=5)
    (tmp_path / "empty").mkdir()
    (tmp_path / "apple").mkdir()
    (tmp_path / "apple" / "1.heic").write_bytes(b"x")
    (tmp_path / "cat" / "notes.json").write_text("{}")
    found = get(tmp_path)
    assert found.notes == (
        "datasets.x: passed over 2 files that are no image by their suffix: .heic 1, .json 1",
        "datasets.x: the class cat is that of 2 folders: cat, more/cat",
        "datasets.x: the folder apple holds no image",
        "datasets.x: the folder empty holds no image",
    )
    assert set(labels(found)) == {"cat", "cow", "dog"}


@pytest.mark.parametrize("suffix", [".jfif", ".avif"])
def test_images_of_rarer_suffixes_are_read(tmp_path: Path, suffix: str) -> None:
    kind = {".jfif": "jpeg", ".avif": "avif"}[suffix]
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        image = Image.fromarray(np.full((16, 16, 3), len(name) * 30, dtype=np.uint8))
        image.save(tmp_path / name / f"1{suffix}", kind)
    assert labels(get(tmp_path)) == ["cat", "dog"]


def test_several_paths_agree_on_classes_and_folders(tmp_path: Path) -> None:
    import datasets

    from mergetomix.sections.source import Source

    images = [Image.fromarray(each) for each in tiny.pixels(3)]
    paths = []
    for i, names in enumerate((["cat", "dog"], ["dog", "cat"])):
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
        )
        rows = {"image": images, "label": [0, 0, 1]}
        paths.append(str(tmp_path / f"{i}.parquet"))
        datasets.Dataset.from_dict(rows, features=features).to_parquet(paths[-1])

    def labels(path: Any) -> list[str]:
        found = read(Source(path=path, image="image", label="label"), tiny.WHERE, False)
        return [item.label for item in found.items]

    assert labels(paths) == ["cat", "cat", "dog", "dog", "dog", "cat"]
    folders = [
        str(folder_of(tmp_path / "a", ("cat", "dog"), 1)),
        str(folder_of(tmp_path / "b", ("bus", "car"), 1)),
    ]
    assert labels(folders) == ["cat", "dog", "bus", "car"]
    for i, name in enumerate("xy"):
        (tmp_path / name).mkdir()
        Image.fromarray(tiny.pixels(1, seed=i)[0]).save(tmp_path / name / "0.png")
        (tmp_path / name / "t.csv").write_text("image,label\n0.png,cat\n")
    for path in ([str(tmp_path / name / "t.csv") for name in "xy"], str(tmp_path / "*" / "t.csv")):
        source = Source(path=path, image="image", label="label", classes=["cat", "dog"])
        found = read(source, tiny.WHERE, False).items
        digests = {item.picture.digest for item in found if item.picture is not None}
        assert len(found) == len(digests) == 2
