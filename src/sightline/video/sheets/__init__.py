"""What people look at: the front of plans as a plot, and runs side by side as a picture and as a page."""
