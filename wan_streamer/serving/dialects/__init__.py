"""Languages of the data channel: how the events of a call are written and the visitor's are read.
In: `wan_streamer.serving.messages`
Out: JSON text of the page's own events, of the Live dialect, of the Realtime dialect; a JSON Schema of all"""
