"""Revival: when a session that is adopted may begin without what its home has."""

from enum import IntEnum


class Revival(IntEnum):
    """When a session that is adopted begins without what its home has, as that is away."""

    NEVER = 0
    # Though other members are away as well: an operator has named those that are to take the sessions.
    ALWAYS = 1
    # Only where all other members are heard: it may have gone to one that is not.
    IF_WHOLE = 2
