"""fairgate: a fair, fast and accountable gateway in front of self-hosted language models."""

__version__ = "0.1.0"
