"""Coverage-guided fuzzing of everything that reads foreign bytes; `python -m tests.fuzz --help`."""
