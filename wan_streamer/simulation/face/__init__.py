"""A drawn person: identity, motion, mouth, hands, and what they hold.
In: an identity and a pose for each frame, at 25 fps
Out: frames uint8 [H, W, 3]"""
