"""From frames to files: the video, its pictures, and the record of how to make it again."""
