"""What holds for all tests."""

import os

from hypothesis import settings

# Examples are the same in every run, so that a run that failed can be repeated and one that passed
# says something of the next. HYPOTHESIS_PROFILE=default draws new ones.
settings.register_profile("steady", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
