"""Images at URLs: an S3 server that runs here, fsspec's memory, and what stands in the way, each in one line."""

from __future__ import annotations

import builtins
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.data.test_shards import Encoder, rows
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.loading import training_batches
from tokenizers_vq.data.shards import write_codes
from tokenizers_vq.data.sources import open_source


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    """A bucket of moto's S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir("bucket")
    yield system
    server.stop()
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_a_bucket_is_read_as_the_folder_that_it_was(pictures: Path, s3: Any, tmp_path: Path) -> None:
    s3.put(str(pictures), "bucket/photos", recursive=True)
    options = {"workers": 2}
    here = write_codes(Encoder(), DataConfig(path=str(pictures), **options), tmp_path / "here", shards=2)
    url = "s3://bucket/photos"
    there = write_codes(Encoder(), DataConfig(path=url, **options), tmp_path / "there", shards=2)
    assert rows(tmp_path / "here") == rows(tmp_path / "there")
    for name in ("images", "broken", "label_names", "split", "found"):
        assert here[name] == there[name], name
    assert there["folder"] == url
    # What changes there is noticed; what goes away is a broken image.
    opened = open_source(DataConfig(path=url))
    s3.rm("bucket/photos/a/00.png")
    assert "not there any more" in str(opened.items([0])[0].image)
    with pytest.raises(ValueError, match=r"found = 24, now 23|codes of other data"):
        write_codes(Encoder(), DataConfig(path=url, **options), tmp_path / "there")
    with pytest.raises(FileNotFoundError, match=r"no data at s3://nowhere/photos: no such bucket") as error:
        open_source(DataConfig(path="s3://nowhere/photos"))
    assert "\n" not in str(error.value)
    # Loader processes, which are forked, open connections of their own.
    batches = training_batches(DataConfig(path=url, workers=1), image_size=8, channels=3, batch_size=4)
    stream = iter(batches)
    assert next(stream)["images"].shape == (4, 3, 8, 8)
    stream.close()


def test_tables_and_tars_in_a_folder_at_a_url(pictures: Path, memory: Any, tmp_path: Path, monkeypatch) -> None:
    import tarfile

    import datasets

    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)  # which refuses any URL, the memory's too
    loaded = datasets.load_dataset("imagefolder", data_dir=str(pictures / "b"), split="train")
    loaded.to_parquet(str(tmp_path / "train-0.parquet"))
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for path in sorted((pictures / "b").iterdir()):
            tar.add(path, path.name)
    memory.put(str(tmp_path / "train-0.parquet"), "/tables/train-0.parquet")
    memory.put(str(tmp_path / "0.tar"), "/tars/0.tar")
    memory.pipe("/tars/readme.md", b"# words")
    for url in ("memory://tables", "memory://tables/train-0.parquet", "memory://tars", "memory://tars/*.tar"):
        source = open_source(DataConfig(path=url))
        assert len(source) == 12, url
        assert len(source.items([0, 11])) == 2


def test_pictures_by_a_glob_and_alone(pictures: Path, memory: Any) -> None:
    memory.put(str(pictures), "/photos", recursive=True)
    assert len(open_source(DataConfig(path="memory://photos/b/1*.png"))) == 8
    (item,) = open_source(DataConfig(path="memory://photos/b/12.png")).items([0])
    assert isinstance(item.image, bytes)


def test_what_stands_in_the_way_is_one_line(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, kind, message in (
        ("memory://nothing", FileNotFoundError, "no data at memory://nothing: no such bucket, folder or file"),
        ("nonsense://a/b", ValueError, "nothing here reads nonsense://"),
    ):
        with pytest.raises(kind, match=message) as error:
            open_source(DataConfig(path=url))
        assert "\n" not in str(error.value)
    memory.pipe("/codes/codes.json", b"{}")
    with pytest.raises(ValueError, match="was written by this package"):
        open_source(DataConfig(path="memory://codes"))

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(memory), "find", refuse)
    with pytest.raises(ValueError, match=r"memory://photos: may not be read \(Access Denied\): set the credentials"):
        open_source(DataConfig(path="memory://photos"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "gcsfs":
            raise ImportError("No module named 'gcsfs'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    for path in ("gs://bucket/photos", "gs://bucket/train.parquet"):
        with pytest.raises(ValueError, match="gs:// needs a package that is not installed: pip install gcsfs"):
            open_source(DataConfig(path=path))


def test_files_that_are_here_stay_files(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "file")
    source = open_source(DataConfig(path=str(tmp_path / "file")))
    assert isinstance(source.items([0])[0].image, str)
