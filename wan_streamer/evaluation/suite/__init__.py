"""The trials, who plays them, and the run over all of them.
In: a checkpoint or a folder of recordings
Out: `SuiteResult`, and the files that `wan-streamer eval` writes"""
