"""Networks that may need priors, define what a good fusion is, and never ship."""
