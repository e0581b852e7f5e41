"""Settings of all tests."""

import hypothesis

# No deadline: how long an example takes says more about what else the machine is doing.
hypothesis.settings.register_profile("recurra", deadline=None)
hypothesis.settings.load_profile("recurra")
