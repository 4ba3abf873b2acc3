"""Independent tasks for the first stage of training: write what is given, or make what is asked for.
In: a seed and voices
Out: `Episode`s of one task each"""
