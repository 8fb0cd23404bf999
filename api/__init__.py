"""The web process: parses requests, queues jobs, answers. Holds no pixels and never imports torch or worker."""
