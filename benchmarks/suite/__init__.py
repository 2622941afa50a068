"""The asv suite, and what `python -m benchmarks` shares with it: cases, providers, oracle, measuring.

asv imports this package as `suite`, the command as `benchmarks.suite`; so imports in here are relative.
"""
