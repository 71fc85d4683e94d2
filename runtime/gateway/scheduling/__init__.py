"""Which engine answers, and when: queue, pool, placement."""
