"""One short view per endpoint: parse, call, shape the reply."""
