"""Terms, steps, recipes and the engine that alternates them."""
