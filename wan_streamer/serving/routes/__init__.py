"""The HTTP routes of the dialects: thin, on the same desk as the page's.
In: requests that passed the doors
Out: sessions with client secrets, SDP answers, refusals with codes"""
