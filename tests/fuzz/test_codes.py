"""Mutated folders of codes: documented errors only, and never other codes than were written."""

from __future__ import annotations

import pytest

pytest.importorskip("resource")
from tests.fuzz import codes, harness


def test_the_folder_itself_is_read() -> None:
    whole = {"codes.json": codes.json.dumps(codes.INFO.to_dict()).encode()}
    shards = {codes.shard_name(part, 2): content for part, content in enumerate(codes.SHARDS)}
    codes.call(codes.Input({**whole, **shards}, None, True))


def test_mutated_folders() -> None:
    assert harness.search(range(600), codes.make, codes.call, codes.DOCUMENTED) == []
