"""Benchmarks of fastloss and its peers: an asv suite, and a command that runs the same cases without asv."""
