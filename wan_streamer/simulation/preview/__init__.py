"""Simulated conversations for people to watch.
In: shards
Out: films and still pictures with a timeline of what happens"""
