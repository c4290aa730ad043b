"""What is said where somebody has no home folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from papertape.core.home import expanded, home


def test_a_home_folder_and_what_is_below_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path and expanded("~/a") == tmp_path / "a" and expanded("a/~") == Path("a/~")


def test_where_there_is_none_it_is_said_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OSError, match="^there is no home folder; set HOME or PAPERTAPE_DATA$"):
        home("PAPERTAPE_DATA")
    with pytest.raises(OSError, match="^~no-such-user is nobody's home folder here$"):
        expanded("~no-such-user/x")
