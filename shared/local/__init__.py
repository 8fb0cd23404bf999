"""The stack without Docker: a private Redis, one worker and the API as child processes. `python -m shared.local`."""
