"""Networks that look at fused images; frozen and differentiable they are critics."""
