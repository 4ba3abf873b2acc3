"""The one training loop and what it needs: processes, state on disk, batches ahead of time, curves.
In: a `Stage`
Out: its checkpoint, log and curves; resumes to the last bit"""
