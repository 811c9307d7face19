"""What all tests share. TIMBRE_BIN names the program (default: the newest one built), TIMBRE_DATA the folder of real
recordings (default: ../shared/data beside the project); tests that need them skip, and say so, without."""

import pytest

import timbre_program as timbre


def pytest_configure(config):
    config.addinivalue_line("markers", "asan: also run with the address and undefined-behaviour sanitizers")
    config.addinivalue_line("markers", "tsan: also run with the thread sanitizer")


def pytest_sessionstart(session):
    if timbre.PROGRAM is None or not timbre.PROGRAM.is_file():
        pytest.exit(f"no program to test: {timbre.PROGRAM or 'build it, or set TIMBRE_BIN'}", returncode=3)


def pytest_report_header(config):
    return f"program: {timbre.PROGRAM}"


@pytest.fixture(scope="session")
def tiny():
    """A model folder that loads in no time: wav2vec2-base in small, with random weights and four labels."""
    return timbre.GOLDEN / "base"


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Four clips like speech, of 0.3 to 3 s, as files."""
    folder = tmp_path_factory.mktemp("clips")
    return [timbre.write_wav(folder / f"{i}.wav", timbre.voice(i, s)) for i, s in enumerate((0.3, 1.0, 2.2, 3.0))]


@pytest.fixture(scope="module")
def server():
    """A server of that model, for one file of tests; files that need another make their own."""
    from timbre_server import Server  # it looks at the program
    with Server() as s:
        yield s


@pytest.fixture(scope="module")
def stub(server):
    """timbre.v1.Timbre there."""
    from timbre_server import calling
    with calling(server) as s:
        yield s
