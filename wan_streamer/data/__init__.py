"""Media, shards and latents on disk, and the work of many processes on them.
In: films and sound of any kind, or episodes
Out: `UserUnit`s, shards of conversations, encoded conversations, films"""
