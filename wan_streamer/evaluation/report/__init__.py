"""The page of an evaluation: figures, tables and short films in one HTML file.
In: results, observations and recordings
Out: HTML without anything from outside"""
