"""Everything between encoded data and a checkpoint: one loop, and a stage for each thing that is learned.
In: prepared sounds and faces, encoded conversations and tasks
Out: codecs and agents, with their curves and samples"""
