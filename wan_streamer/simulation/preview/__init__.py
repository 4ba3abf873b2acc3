"""Simulated conversations for people to watch.
In: shards
Out: films with a timeline of what happens"""
