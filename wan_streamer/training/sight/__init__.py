"""The sight, between eyes and words: a read-out learns to name what is held up.
In: an agent with eyes and a wording
Out: the agent with another sight"""
