"""What destinations of alerts share: when one is sent again, how it is worded, and what of calls is worth one."""
