"""Load generation: realistic records, load clients, baselines, and the benches on top of them."""
