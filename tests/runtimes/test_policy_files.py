"""Reading the files of a policy folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from relay.errors import ConfigurationError
from relay.runtimes.policy_files import read_folder

if TYPE_CHECKING:
    from pathlib import Path


def test_reads_toml_files(tmp_path: Path) -> None:
    """A set is the folder's *.toml files, by path; nothing hidden, nothing below, nothing else."""
    (tmp_path / "b.toml").write_bytes("# ü\r\n".encode())
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfversion = 1\n")
    (tmp_path / ".a.toml.swp").write_text("x")
    (tmp_path / ".hidden.toml").write_text("x")
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.toml").write_text("x")
    assert list(read_folder(tmp_path).items()) == [
        (str(tmp_path / "a.toml"), "version = 1\n"),
        (str(tmp_path / "b.toml"), "# ü\n"),
    ]


def test_mounted_secrets_and_config_maps(tmp_path: Path) -> None:
    """Files that are symbolic links, as Kubernetes mounts them, count like any other."""
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "a.toml").write_text("version = 1")
    (tmp_path / "a.toml").symlink_to(tmp_path / "..data" / "a.toml")
    assert read_folder(tmp_path) == {str(tmp_path / "a.toml"): "version = 1"}


def test_no_folder(tmp_path: Path) -> None:
    """A folder that is not there is named."""
    with pytest.raises(ConfigurationError, match=r"There is no policy folder .*nowhere\."):
        read_folder(tmp_path / "nowhere")


def test_not_a_folder(tmp_path: Path) -> None:
    """A single file is no set."""
    file = tmp_path / "a.toml"
    file.write_text("version = 1")
    with pytest.raises(
        ConfigurationError, match=r"a\.toml is not a folder; a policy set is a folder of \*\.toml files"
    ):
        read_folder(file)


def test_no_files(tmp_path: Path) -> None:
    """A folder without *.toml files is no set."""
    with pytest.raises(ConfigurationError, match=r"No \*\.toml files in the policy folder"):
        read_folder(tmp_path)


def test_unreadable(tmp_path: Path) -> None:
    """What cannot be read is named, with the system's reason."""
    (tmp_path / "a.toml").mkdir()
    with pytest.raises(ConfigurationError, match=r"Cannot read .*a\.toml: Is a directory\."):
        read_folder(tmp_path)


def test_not_utf8(tmp_path: Path) -> None:
    """A file in another encoding is named with the line where it goes wrong."""
    (tmp_path / "a.toml").write_bytes(b"version = 1\n# \xfc\n")
    with pytest.raises(ConfigurationError, match=r"a\.toml:2 is not UTF-8"):
        read_folder(tmp_path)
