"""Fills and checks the model cache: `python -m download` and `python -m download --check`.

`download.manifest` and `download.cache` import neither torch nor the hub's library, so the worker may use them.
"""
