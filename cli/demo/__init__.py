"""The demo: the main job on a corpus that every machine with this project has, the documentation of its own libraries.

Nothing here is needed by a run on a corpus of one's own.
"""
