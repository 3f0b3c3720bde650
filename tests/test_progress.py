"""One bar for all commands."""

import io

import pytest

from vapo_verl.console import progress_bar


class Stream(io.StringIO):
    def __init__(self, is_terminal: bool):
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_bar_shows_the_time_left_on_a_terminal_alone(monkeypatch, is_terminal):
    stream = Stream(is_terminal)
    monkeypatch.setattr("sys.stderr", stream)
    with progress_bar(10, unit="row", done=4) as progress:
        progress.update(6)
    if is_terminal:
        assert "10/10 [" in stream.getvalue() and "<" in stream.getvalue()
    else:
        assert stream.getvalue() == ""
