"""Names say splits by whole words in any form; where they could mean two things, nobody guesses."""

from __future__ import annotations

import pytest

from tokenizers_vq.data.splits import choose, of_pictures, of_tables, role

Read = dict[str | None, list[str]]


@pytest.mark.parametrize(
    ("names", "right"),
    [
        ("Train TRAINING train2017 training_set train_images trainImages", "train"),
        ("Test testing TEST test_set images_test", "test"),
        ("val Valid validation dev DEV val2017 eval", "validation"),
        ("train_station bullet_train trainA contest devices latest valley 2012 samples", None),
    ],
)
def test_words_of_a_name(names: str, right: str | None) -> None:
    assert {name: role(name) for name in names.split()} == dict.fromkeys(names.split(), right)


def _pictures(names: str, wanted: str | None = None) -> tuple[Read, list[str]]:
    read = of_pictures(sorted(names.split()), wanted, "d")
    return {split: [part.name for part in parts] for split, parts in read.parts.items()}, read.beside


@pytest.mark.parametrize(
    ("names", "right"),
    [
        ("Train/a.png Test/b.png", {"Train": ["Train/a.png"], "Test": ["Test/b.png"]}),
        ("images/train2017/a.png images/val2017/b.png", {"train2017": ["images/train2017/a.png"],
                                                         "val2017": ["images/val2017/b.png"]}),
        ("x/train/a.png x/test/b.png y/train/c.png", {"train": ["x/train/a.png", "y/train/c.png"],
                                                      "test": ["x/test/b.png"]}),
        ("training_set/cat/1.png test_set/cat/2.png", {"training_set": ["training_set/cat/1.png"],
                                                       "test_set": ["test_set/cat/2.png"]}),
        ("train/a.png train/b.png", {"train": ["train/a.png", "train/b.png"]}),
        ("bus/1.png car/1.png train/1.png", {None: ["bus/1.png", "car/1.png", "train/1.png"]}),  # the vehicle
        ("a/1.png train_station/2.png test_tube/3.png", {None: ["a/1.png", "test_tube/3.png", "train_station/2.png"]}),
        ("1/a.png 2/b.png", {None: ["1/a.png", "2/b.png"]}),
    ],
)  # fmt: skip
def test_folders(names: str, right: Read) -> None:
    assert _pictures(names) == (right, [])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("train/a.png test/b.png extra/c.png", "test, train are splits, and beside them lie 1 images in extra"),
        ("train/a.png test/b.png c.png", "beside them lie 1 images in no folder"),
        ("car/1.png train/1.png", "is train a split or a class beside car"),
        ("bus/1.png car/1.png train/cat/1.png", "is train a split or a class beside bus, car"),
        ("train/a.png c.png", "is train a split or a class beside no folder"),
        ("trainA/1.png trainB/1.png testA/1.png", "cannot tell splits from classes in the folders testA, trainA"),
        (
            "seg_train/a/1.png seg_test/a/1.png seg_pred/1.png",
            "cannot tell splits from classes in the folders seg_pred",
        ),
        ("train_32x32/1.png val_32x32/1.png x/1.png", "cannot tell splits from classes in the folders train_32x32"),
        ("train2014/1.png train2017/1.png", "split could be each of train2014, train2017"),
    ],
)
def test_folders_that_could_mean_two_things_are_refused(names: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        _pictures(names)
    assert "split=all" in str(error.value) and "\n" not in str(error.value)
    everything, beside = _pictures(names, "all")
    assert everything == {"all": sorted(names.split())} and not beside


def test_a_wanted_split_settles_it() -> None:
    assert _pictures("train/a.png test/b.png extra/c.png", "test") == (
        {"test": ["test/b.png"], "train": ["train/a.png"]},
        ["extra/c.png"],
    )
    assert _pictures("trainA/1.png trainB/1.png testA/1.png", "trainB")[0] == {"trainB": ["trainB/1.png"]}
    assert _pictures("bus/1.png car/1.png train/1.png", "train")[0] == {"train": ["train/1.png"]}
    with pytest.raises(ValueError, match=r"no sub-folder for split 'dev' \(sub-folders: test, train\)"):
        _pictures("train/a.png test/b.png", "dev")
    with pytest.raises(ValueError, match=r"no sub-folder for split 'test'"):
        _pictures("cat/a.png dog/b.png", "test")


def test_classes_of_folders() -> None:
    read = of_pictures(["d/test/cat/1.png", "d/train/cat/2.png", "d/train/dog/3.png"], None, "d")
    assert [part.classes for part in read.parts["train"]] == [("cat",), ("dog",)]
    assert [part.classes for part in read.parts["test"]] == [("cat",)]
    read = of_pictures(["cat/test/1.png", "cat/train/2.png", "dog/train/3.png"], None, "d")
    assert [part.classes for part in read.parts["train"]] == [("cat",), ("dog",)]


@pytest.mark.parametrize(
    ("names", "right"),
    [
        ("train-0-of-1 test-0-of-1", {"train": ["train-0-of-1"], "test": ["test-0-of-1"]}),
        ("street forest train harbour", {"train": ["forest", "harbour", "street", "train"]}),
        ("shard-0 shard-1 shard-test", {"train": ["shard-0", "shard-1", "shard-test"]}),
        ("shard-0 shard-dev", {"train": ["shard-0", "shard-dev"]}),
        ("Train/0 VALID/0", {"Train": ["Train/0"], "VALID": ["VALID/0"]}),
        ("devset-dev-train-0 devset-dev-test-0", {"train": ["devset-dev-train-0"], "test": ["devset-dev-test-0"]}),
        ("test-0 test-1", {"test": ["test-0", "test-1"]}),
        ("contest-0 latest-1", {"train": ["contest-0", "latest-1"]}),
        ("2012/0 2013/0", {"train": ["2012/0", "2013/0"]}),
    ],
)  # fmt: skip
def test_tables(names: str, right: Read) -> None:
    read = of_tables(sorted(f"{name}.parquet" for name in names.split()), None, "d")
    assert not read.beside
    assert {
        split: [part.name.removesuffix(".parquet") for part in parts] for split, parts in read.parts.items()
    } == right


def test_tables_of_two_splits_and_one_of_none_are_refused() -> None:
    names = ["extra.parquet", "test-0.parquet", "train-0.parquet"]
    with pytest.raises(ValueError, match=r"files of the splits test, train, and 1 of none \(extra.parquet\)"):
        of_tables(names, None, "d")
    assert of_tables(names, "train", "d").beside == ["extra.parquet"]
    assert [part.name for part in of_tables(names, "all", "d").parts["all"]] == names


def test_choosing() -> None:
    evaluation = ("test", "validation", "val", "train")
    assert choose(["Train", "Valid"], None, evaluation, "d") == "Valid"
    assert choose(["Train", "Test", "dev"], None, evaluation, "d") == "Test"
    assert choose(["TRAINING", "dev"], None, ("train",), "d") == "TRAINING"
    assert choose(["TRAINING", "dev"], "validation", ("train",), "d") == "dev"
    assert choose(["other"], None, ("train",), "d") == "other"
    for splits, wanted, words in (
        (["train", "test"], "val", "no split 'val'; it has: train, test"),
        (["one", "two"], None, "none of the splits one, two is meant for this"),
        (["test", "dev"], None, "none of the splits test, dev is meant for this"),
        (["train2014", "train2017", "test"], None, "split could be each of train2014, train2017"),
    ):
        with pytest.raises(ValueError, match=words):
            choose(splits, wanted, ("train",), "d")
