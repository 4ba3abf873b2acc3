"""Stage 0: the codecs of sound and picture, their losses, and pictures of what they have learned.
In: prepared arrays of sounds and faces
Out: a codec's weights and shape"""
