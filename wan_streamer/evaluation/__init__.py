"""What an agent is worth, measured from the media that come out of it.
In: a checkpoint, a baseline, or recordings of any other system
Out: metrics with confidence intervals, as JSON and as a page"""
