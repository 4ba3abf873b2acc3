"""What the codecs' round trip costs, on held-out sound and pictures.
In: clips and a pair of codecs
Out: scores of words, voice and picture"""
