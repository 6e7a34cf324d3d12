"""Files that several tasks have, against a comparison of every two files."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemtl.data.objects.twins import twins

CONTENTS = st.lists(st.binary(max_size=2), max_size=6)


@settings(deadline=None, max_examples=50)
@given(contents=st.dictionaries(st.sampled_from("abc"), CONTENTS))
def test_twins_are_the_equal_files_of_different_tasks(
    contents: dict[str, list[bytes]], tmp_path_factory: object
) -> None:
    folder = tmp_path_factory.mktemp("twins")  # type: ignore[attr-defined]
    paths = {task: [str(folder / f"{task}{i}") for i in range(len(of))] for task, of in contents.items()}
    of_path = {path: (task, held) for task in paths for path, held in zip(paths[task], contents[task], strict=True)}
    for path, (_, held) in of_path.items():
        Path(path).write_bytes(held)
    found = twins(paths)
    for path, (task, held) in of_path.items():
        assert (path in found) == any(other != task and same == held for other, same in of_path.values())
        for other in found:
            assert path not in found or (found[path] == found[other]) == (held == of_path[other][1])


def test_a_file_that_cannot_be_read_is_equal_to_none(tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"")
    absent, too = str(tmp_path / "absent"), str(tmp_path / "absent too")
    assert twins({"a": [absent, str(tmp_path / "here")], "b": [too]}) == {}
