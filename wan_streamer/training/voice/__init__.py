"""The voice, beside the model: it learns to say words.
In: an agent, encoded conversations in which the agent is heard and its phonemes are known
Out: the agent with another voice"""
