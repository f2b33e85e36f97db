"""What the callback `prometheus` is made of: its metrics, how records are counted, the store, the page."""
