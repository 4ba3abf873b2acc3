"""From media to measurements: recognised words, speech, face and props, and how far each reader is to be believed.
In: sound and frames of the agent
Out: an `Observation`"""
