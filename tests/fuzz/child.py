"""The process of one fuzz target: `python -m tests.fuzz.child TARGET FLAGS...`, flags as libFuzzer takes them.

Imports atheris first, so that our own code is instrumented as it is imported; h11 and msgspec are not.
"""

import sys

import atheris

with atheris.instrument_imports(include=["gateway"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
