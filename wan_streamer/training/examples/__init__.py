"""What a training step of the model reads.
In: encoded conversations and tasks
Out: `Example`s: batches of clips with targets and masks"""
