"""What destinations that store objects share: how records become objects, and what these are called."""
