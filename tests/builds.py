"""Whether the cores are compiled here, and marks for the tests of which one of the two builds is enough.

What is interpreted and what is compiled is tried by the same tests, but for those that change the cores in memory,
which can't be done where they are compiled, and for some that take long where they are not.
"""

import pytest

from cluster.incoming_link import IncomingLink

IS_INTERPRETED = hasattr(IncomingLink.receive, "__code__")

interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason="compiled classes can't be changed in memory")
compiled = pytest.mark.skipif(
    IS_INTERPRETED, reason="needs no change in memory, and is faster where the cores are compiled"
)
