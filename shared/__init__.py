"""The contract between the web process and the worker. Imports neither of them."""

__version__ = "0.1.0"
