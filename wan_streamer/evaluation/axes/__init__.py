"""The metrics: when an agent speaks, what it says, what it looks like.
In: `Case`s: a trial's labels, what was observed of the agent, and the truth
Out: `Metric`s with confidence intervals"""
