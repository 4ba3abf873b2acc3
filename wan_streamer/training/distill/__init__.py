"""Stage 3: an agent of many solver steps teaches one of few.
In: a teacher's checkpoint and encoded conversations
Out: a student's checkpoint"""
