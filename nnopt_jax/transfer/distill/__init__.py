"""Losses that make a student like its teacher."""
