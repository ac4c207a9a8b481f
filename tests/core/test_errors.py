"""Errors say what to do; each kind has its exit code."""

import pytest

from overhaul.core import MissingExtraError, OverhaulError, load_optional, nearest


def test_the_nearest_names_come_first_then_all() -> None:
    assert nearest("trian", ["train", "prune"]) == "Did you mean 'train'? Known: prune, train."
    assert nearest("xyz", ["train"]) == "Known: train."
    assert nearest("xyz", []) == "Known: none."


def test_of_many_names_the_first_are_shown() -> None:
    hint = nearest("x", [f"name{number:02}" for number in range(30)])
    assert hint.endswith("name23, ....")
    assert "name24" not in hint


def test_a_missing_package_is_named_with_the_line_that_installs_it() -> None:
    with pytest.raises(MissingExtraError, match=r"'no_such' is needed to fly.*overhaul\[wings\]"):
        load_optional("no_such.module", extra="wings", why="to fly")
    assert load_optional("json", extra="wings", why="to fly").loads("1") == 1


def test_every_error_has_an_exit_code_of_its_own_or_of_its_kind() -> None:
    def below(cls: type[OverhaulError]) -> list[type[OverhaulError]]:
        return [cls, *(each for sub in cls.__subclasses__() for each in below(sub))]

    codes = {cls.__name__: cls.exit_code for cls in below(OverhaulError)}
    assert all(0 < code < 64 for code in codes.values())
    assert codes["SpecError"] == codes["OrderError"] == 2
