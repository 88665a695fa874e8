"""The page at `/`: chat with the served model in a browser."""
