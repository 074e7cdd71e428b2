import time

from convwright.training.progress import still


def test_lines_come_while_something_lasts_and_end_with_it():
    lines = []
    with still("choosing", lines.append, every=0.02):
        deadline = time.monotonic() + 20
        while len(lines) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
    count = len(lines)
    time.sleep(0.06)
    assert len(lines) == count >= 2
    assert all(line.startswith("still choosing (") and line.endswith(" s)") for line in lines)


def test_what_ends_soon_says_nothing():
    lines = []
    with still("choosing", lines.append):
        pass
    assert not lines
