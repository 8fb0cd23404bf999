"""The private redis-server of the local stack, for tests."""

from shared.local.redis_server import RedisServer, find_redis_server, free_port

__all__ = ["RedisServer", "find_redis_server", "free_port"]
