"""People's own two-sided recordings, made into training data.
In: a folder of films, sound and transcripts
Out: shards like those of `simulate`, and a report of what became of every recording"""
