"""Linear layers in 8 and 4 bit: smaller on disk and in memory, faster where the memory or the product is the limit."""
