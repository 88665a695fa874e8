"""Finding step-cache plans: probe the model, take shortest paths through the errors, race what they propose."""
