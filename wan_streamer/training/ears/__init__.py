"""Ears: speech, teacher, distillation and scores. Needed for training only."""
