"""Video: the step cache of diffusion transformers, its plans, and what it costs in fidelity."""
