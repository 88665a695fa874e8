"""From files to the parts of a video model: diffusers' folders, the original Wan files, and what saves memory."""
