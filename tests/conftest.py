"""What all tests share: hypothesis judges what an example does, not how long it takes on a machine that is busy."""

from hypothesis import settings

settings.register_profile("zvmq", deadline=None)
settings.load_profile("zvmq")
