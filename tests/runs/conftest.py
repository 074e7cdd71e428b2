"""What tests of runs share."""

from run_fixtures import *  # noqa: F403
