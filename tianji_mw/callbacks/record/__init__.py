"""The record of a call: what is written down at its end, and what is made of that when it is delivered."""
