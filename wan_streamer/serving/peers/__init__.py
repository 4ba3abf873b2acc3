"""How a visitor's media travel: WebRTC, or one WebSocket where UDP does not pass.
In: encoded sound and picture, messages
Out: `Call`'s uplink, fed; its playout, encoded"""
