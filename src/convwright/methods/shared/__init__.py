"""What several methods use: uniform widths, knobs of stages, successive halving, Pareto dominance."""
