"""Eyes: drawn people with exact labels, read-outs, supervised training. Needed for training only.
In: nothing, clips are made as they are needed
Out: a folder `eyes/` that `load_eyes` reads"""
