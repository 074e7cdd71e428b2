"""What several methods decide with: widths in proportion, halving, fronts."""
