"""The sentence of an error: what it is made of, and that it cannot steer a terminal."""

from __future__ import annotations

import pickle

from cvpeft.errors import DataError, visible


def test_control_characters_are_written_out_and_lines_stay() -> None:
    error = DataError("PATH", "a\tb\n\x1b]0;mine\x07\r", where="\x9b2J井盖\x7f.jpg", why="\0", fix="é")
    assert str(error) == ("E-PATH \\x9b2J井盖\\x7f.jpg - a\tb\n\\x1b]0;mine\\x07\\x0d. \\x00. Fix: é")
    assert visible(str(error)) == str(error) == str(pickle.loads(pickle.dumps(error)))
