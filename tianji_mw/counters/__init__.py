"""Counting across calls and processes: amounts in sliding windows, and money that is held before it is spent.

    windows = RedisWindows(redis, runtime, prefix="tianji", replicas=lambda: 4)
    refused = await windows.take("gpt-a", [Want("rpm", 600, 1), Want("tpm", 100_000, 1_250)])

`base.py` the two protocols, `local.py` one process, `redis.py` and `redis_holds.py` all processes, `lua.py` what runs
inside Redis, `outage.py` the time without it, `known.py` what it said last, `aging.py` tables that forget. It knows
nothing of deployments, keys or users.
"""
