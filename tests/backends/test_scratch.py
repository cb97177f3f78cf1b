"""Files that builds of a program leave for each other."""

from fxopt.backends import keep_files
from fxopt.backends.scratch import use_scratch


def test_what_another_folder_in_use_holds_is_found(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "file").write_text("kept")

    with use_scratch(tmp_path / "others"):
        keep_files("key", make)
    with use_scratch(tmp_path / "others"), use_scratch(tmp_path / "own"):
        assert (keep_files("key", make) / "file").read_text() == "kept"
        assert keep_files("new", make).parent == tmp_path / "own"
    assert len(made) == 2
    assert keep_files("key", make) is None  # nothing is kept now
