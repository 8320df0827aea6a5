"""Turn many model checkpoints into one better model."""

__version__ = "0.1.0"
