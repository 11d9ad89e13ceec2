"""What runs on a slot: training of concepts, rendering of rows, and writing of their objects."""
