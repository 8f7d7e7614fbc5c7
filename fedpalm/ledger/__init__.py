"""One hash-chained, signed log per site: what left, what was acknowledged, what was approved."""
