"""Who says and does what, and when, in a simulated conversation; then heard, seen and labelled.
In: a seed and voices
Out: `Episode`s of two people"""
