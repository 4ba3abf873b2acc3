"""Stages 0 to 2: codecs, pretraining, duplex; and their losses, samples and LoRA.
In: `RunOptions` and data folders
Out: trained weights and held-out scores"""
