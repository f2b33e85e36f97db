"""Answers to requests that mean the same: what is compared, when it is safe, and how thresholds are learned."""
