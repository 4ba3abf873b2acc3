"""What the blocks of a clip attend to in one pass of training: the keys that each would find in the live cache.
In: the layout, queries, keys and values of all blocks, memories
Out: what attention finds, block by block or as one sequence with a mask"""
