"""What tests need to know of how the product under test was built."""

import pytest

from gateway.flow import phases

NEEDS_SOURCE = pytest.mark.skipif(
    not phases.__file__.endswith(".py"), reason="puts other functions or classes in place of compiled ones"
)
