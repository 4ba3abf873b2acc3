"""Flow matching: path, noise, time grid, solvers and guidance.
In: noise and a function that gives the velocity or the clean latent
Out: the latents of one unit"""
