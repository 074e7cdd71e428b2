"""The page in headless Chromium; without Chromium, or where it does not start, these tests are skipped."""

import shutil
import subprocess

import pytest

from convwright.report import report_of

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def _starts():
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    try:
        return program is not None and not subprocess.run([program, "--version"], capture_output=True).returncode
    except OSError:
        return False


pytestmark = [pytest.mark.browser, pytest.mark.skipif(not _starts(), reason="there is no Chromium")]


@pytest.fixture(scope="module")
def page(finished):
    return report_of(finished).html()


@pytest.mark.parametrize(("width", "dark"), [(390, True), (800, False), (1400, True)])
def test_it_opens_without_errors_requests_or_overflow(bench, page, width, dark):
    seen = bench.opened(page, width, dark=dark)
    assert seen["seen"] == []
    assert seen["fetched"] == []
    assert seen["inner"] == width
    assert seen["scroll"] <= width
    assert seen["unfilled"] == 0, "every colour is one of the page's"
    assert seen["drawn"] == seen["plots"] * 3 == 21, "plotly draws three layers per chart"
    assert seen["shown"] == ("dark" if dark else "light")
